/* y = x Wᵀ + b of many rows on matrix units, rounded once to bfloat16; a row's bits depend on that row alone. */
#include "engine.h"
#include "prompt.h"
#include "strips.h"

#if HAS_AMX

enum {
    PIECE_ROWS = 256,    /* of x, which stay in a core's second cache from one piece to the next */
    PANEL_NUMBERS = 256, /* of inputs: with a strip's columns 16 KiB */
};

typedef struct {
    const LinearJob *own;
    int64_t wide, first; /* pieces side by side; the first of the running loop */
} Job;

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* gelu(x), the tanh form: x / (1 + e^(-2 √(2/π) (x + 0.044715 x³))) */
INLINE __m512 gelu_of(__m512 x) {
    __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
    __m512 inner = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x);
    __m512 power = _mm512_min_ps(_mm512_mul_ps(inner, _mm512_set1_ps(-1.5957691216057308f)), _mm512_set1_ps(88.0f));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), exponentials(power)));
}

/* sums [rows, WIDE] of the columns from `column` on → their rows of y, from `row` on */
static void store_rows(const LinearJob *own, const float *sums, int64_t row, int64_t rows, int64_t column) {
    int64_t vectors = (smaller(own->weight.out_width - column, WIDE) + LANES - 1) / LANES;
    for (; rows > 0; rows--, row++, sums += WIDE)
        for (int64_t v = 0; v < vectors; v++) {
            int64_t at = column + v * LANES, left = own->weight.out_width - at;
            __mmask16 mask = (__mmask16)(left >= LANES ? 0xffff : (1u << left) - 1);
            __m512 values = _mm512_loadu_ps(sums + v * LANES);
            if (own->weight.bias != NULL) values = _mm512_add_ps(values, _mm512_maskz_loadu_ps(mask, own->weight.bias + at));
            if (own->is_gelu) values = gelu_of(values);
            _mm256_mask_storeu_epi16(own->out + row * own->weight.out_width + at, mask,
                                     (__m256i)_mm512_cvtneps_pbh(values));
        }
}

/* Of one strip and some inputs, which stay in the first cache while all rows of the piece pass. */
typedef struct {
    const uint32_t *weights, *next; /* `next` is asked for meanwhile */
    int64_t block, steps, is_first;
} Panel;

INLINE void add_panel(const Panel *panel, const uint16_t *x, int64_t stride, int64_t part, int64_t parts, int is_few) {
    const uint32_t *weights = panel->weights, *next = panel->next;
    const char *own = (const char *)x, *rest = own + TILE_ROWS * 2 * stride;
    int64_t bytes = 4 * panel->block, begin = part * TILE_ROWS / parts, end = (part + 1) * TILE_ROWS / parts;
    for (int64_t step = 0; step < panel->steps; step++) {
        for (int64_t line = begin; line < end; line++) {
            _mm_prefetch((const char *)(next + line * panel->block), _MM_HINT_T1);
            _mm_prefetch((const char *)(next + line * panel->block + LANES), _MM_HINT_T1);
        }
        _tile_loadd(4, own + step * TILE_BYTES, 2 * stride);
        _tile_loadd(6, weights, bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, weights + LANES, bytes);
        _tile_dpbf16ps(1, 4, 7);
        if (!is_few) {
            _tile_loadd(5, rest + step * TILE_BYTES, 2 * stride);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        weights += TILE_ROWS * panel->block, next += TILE_ROWS * panel->block;
    }
}

static void panel_part(const Panel *panel, const uint16_t *x, int64_t stride, int64_t part, int64_t parts, int64_t rows,
                       float *sums) {
    int is_few = rows <= TILE_ROWS;
    if (panel->is_first) {
        tiles_zero();
    } else {
        _tile_loadd(0, sums, 4 * WIDE);
        _tile_loadd(1, sums + LANES, 4 * WIDE);
        if (!is_few) {
            _tile_loadd(2, sums + TILE_ROWS * WIDE, 4 * WIDE);
            _tile_loadd(3, sums + TILE_ROWS * WIDE + LANES, 4 * WIDE);
        }
    }
    if (is_few) {
        add_panel(panel, x, stride, part, parts, 1);
        tiles_store_few(sums, WIDE, 2);
    } else {
        add_panel(panel, x, stride, part, parts, 0);
        tiles_store_many(sums, WIDE, 2);
    }
}

static void linear_piece(void *context, long idx, int thread) {
    const Job *job = context;
    const LinearJob *own = job->own;
    (void)thread;
    int64_t column = (job->first + idx) % job->wide * WIDE, width = own->weight.in_width;
    int64_t begin = (job->first + idx) / job->wide * PIECE_ROWS, count = smaller(own->rows - begin, PIECE_ROWS);
    int64_t parts = (count + MOST_ROWS - 1) / MOST_ROWS, rows = (count + parts - 1) / parts;
    _Alignas(64) float sums[PIECE_ROWS / MOST_ROWS][MOST_ROWS * WIDE];
    int64_t second = column + STRIP < own->weight.out_width ? column + STRIP : column; /* what is not there is not stored */
    Strips strips = strips_at(&own->weight, column, second);
    strips_begin(rows);
    for (int strip = 0; strip < 2; strip++)
        for (int64_t at = 0; at < width; at += PANEL_NUMBERS) {
            Panel panel = {.weights = strips.at[strip] + at / 2 * strips.block, .block = strips.block,
                           .steps = smaller(width - at, PANEL_NUMBERS) / TILE_NUMBERS, .is_first = at == 0};
            panel.next = at + PANEL_NUMBERS < width ? panel.weights + PANEL_NUMBERS / 2 * strips.block : strips.at[1];
            for (int64_t part = 0; part < parts; part++) {
                /* All parts have as many rows, so the last one may do some of those before it again. */
                int64_t row = begin + smaller(part * rows, count - rows);
                panel_part(&panel, own->x + row * own->x_row + at, own->x_row, part, parts, rows, sums[part] + strip * STRIP);
            }
        }
    strips_end();
    for (int64_t part = 0; part < parts; part++)
        store_rows(own, sums[part], begin + smaller(part * rows, count - rows), rows, column);
}

EXPORT int32_t vl2_linear_rows(Workers *workers, const LinearJob *own) {
    Job job = {.own = own, .wide = (own->weight.out_width + WIDE - 1) / WIDE};
    int64_t count = (own->rows + PIECE_ROWS - 1) / PIECE_ROWS * job.wide;
    for (; job.first < count; job.first += MOST_PIECES)
        pool_run(workers->pool, linear_piece, &job, (long)smaller(count - job.first, MOST_PIECES));
    return 0;
}

#endif
