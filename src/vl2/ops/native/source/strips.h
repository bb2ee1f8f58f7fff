/* Products of prompts: up to 32 rows of bfloat16 with strips of 32 columns of a weight in blocks, of 16 or 12 bits, two
 * strips at once. Sums are float32; a row's do not depend on the rows beside it. */
#pragma once

#include "amx.h"
#include "product.h"
#include "short.h"

#if HAS_BF16_DOT

enum { MOST_ROWS = 32, STRIP = 2 * LANES, WIDE = 2 * STRIP };

/* Two strips, anywhere in one weight, whose blocks are whole strips. */
typedef struct {
    const Matrix *matrix;
    int64_t columns[2];
} Strips;

/* Where a strip's pairs lie, in BFLOAT16_BLOCKS: a line every `block` words. */
INLINE const uint32_t *strip_at(const Matrix *matrix, int64_t column) {
    int64_t in_block = column % matrix->block;
    return (const uint32_t *)matrix->data + (column - in_block) * (matrix->padded_in / 2) + in_block;
}

/* The first of its lines, where the strip is in 12 bits. */
INLINE int64_t first_line(const Short *from, int64_t column) { return column / from->block * from->pairs; }

/* All rows of a piece with two strips: in parts of equally many rows, of which the last may do some of those before again. */
typedef struct {
    const uint16_t *x; /* [count, width], rows `stride` numbers apart */
    int64_t stride, width, count, parts, rows; /* `rows` of a part, as of `cut_rows` */
    Strips strips, next; /* `next` is multiplied after this, as wide: it is asked for meanwhile, on matrix units */
    uint32_t *room;      /* without matrix units: for weights in 12 bits, `strip_room` numbers */
    float (*sums)[MOST_ROWS * WIDE]; /* [parts]: [rows, WIDE] */
} StripProduct;

INLINE void cut_rows(StripProduct *own, int64_t count) {
    own->count = count, own->parts = parts_of(count, MOST_ROWS);
    own->rows = parts_of(count, own->parts);
}

INLINE int64_t first_of_part(const StripProduct *own, int64_t part) {
    return smaller(part * own->rows, own->count - own->rows);
}

/* Sums of a row, WIDE of them. */
INLINE void store_wide(uint16_t *to, const float *sums) {
    UNROLL for (int i = 0; i < WIDE; i += 2 * LANES)
        store_both_rounded(to + i, _mm512_loadu_ps(sums + i), _mm512_loadu_ps(sums + i + LANES));
}

#if HAS_AMX

enum { PANEL_NUMBERS = 256 }; /* of inputs: with a strip's columns 16 KiB, and two threads may share a first cache */

/* Of one strip and some inputs: stays in the first cache while all rows pass. */
typedef struct {
    const uint32_t *weights;
    int64_t block, first, numbers; /* inputs */
    const char *next[2];           /* what comes next, in two halves of a line each, a line every `next_bytes` */
    int64_t next_bytes;
} Panel;

INLINE void strips_begin(int64_t rows) { tiles_begin(rows); }
INLINE void strips_end(void) { tiles_end(); }

/* Up to 16 rows if `is_few`, else up to 32, in tiles as `tiles_begin` shapes them. */
INLINE void add_panel(const StripProduct *own, const Panel *panel, int64_t part, int is_few) {
    const uint32_t *weights = panel->weights;
    const char *x = (const char *)(own->x + first_of_part(own, part) * own->stride + panel->first);
    const char *rest = x + TILE_ROWS * 2 * own->stride, *next = panel->next[0], *other = panel->next[1];
    int64_t bytes = 4 * panel->block, begin = part * TILE_ROWS / own->parts, end = (part + 1) * TILE_ROWS / own->parts;
    tiles_see_stores();
    for (int64_t at = 0; at < panel->numbers; at += TILE_NUMBERS) {
        for (int64_t line = begin; line < end; line++) { /* this part's share, into the second cache */
            _mm_prefetch(next + line * panel->next_bytes, _MM_HINT_T1);
            _mm_prefetch(other + line * panel->next_bytes, _MM_HINT_T1);
        }
        _tile_loadd(4, x + 2 * at, 2 * own->stride);
        _tile_loadd(6, weights, bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, weights + LANES, bytes);
        _tile_dpbf16ps(1, 4, 7);
        if (!is_few) {
            _tile_loadd(5, rest + 2 * at, 2 * own->stride);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        weights += TILE_ROWS * panel->block;
        next += TILE_ROWS * panel->next_bytes, other += TILE_ROWS * panel->next_bytes;
    }
}

static void panel_part(const StripProduct *own, const Panel *panel, int64_t part, float *sums) {
    int is_few = own->rows <= TILE_ROWS;
    if (panel->first == 0) tiles_zero();
    else if (is_few) tiles_load_few(sums, WIDE, 2);
    else tiles_load_many(sums, WIDE, 2);
    if (is_few) {
        add_panel(own, panel, part, 1);
        tiles_store_few(sums, WIDE, 2);
    } else {
        add_panel(own, panel, part, 0);
        tiles_store_many(sums, WIDE, 2);
    }
}

/* The panel's place among the next strips. */
INLINE void look_ahead(Panel *panel, const Strips *next, int strip) {
    const Matrix *matrix = next->matrix;
    int64_t column = next->columns[strip], pair = panel->first / 2;
    if (matrix->layout == BFLOAT12_BLOCKS) {
        const Short from = short_of(matrix);
        int64_t line = first_line(&from, column) + pair;
        panel->next[0] = (const char *)short_lower(&from, line, column % from.block);
        panel->next[1] = (const char *)short_places(&from, line, column % from.block);
        panel->next_bytes = 3 * matrix->block;
    } else {
        const uint32_t *at = strip_at(matrix, column) + pair * matrix->block;
        panel->next[0] = (const char *)at, panel->next[1] = (const char *)(at + LANES);
        panel->next_bytes = 4 * matrix->block;
    }
}

/* The panel's weights: where they lie, or unpacked to `room`. */
INLINE void take_weights(Panel *panel, const Strips *strips, int strip, uint32_t *room) {
    const Matrix *matrix = strips->matrix;
    int64_t column = strips->columns[strip], pair = panel->first / 2;
    if (matrix->layout == BFLOAT12_BLOCKS) {
        const Short from = short_of(matrix);
        tiles_see_stores();
        short_unpack(&from, first_line(&from, column) + pair, column % from.block, panel->numbers / 2, room);
        panel->weights = room, panel->block = STRIP;
    } else {
        panel->weights = strip_at(matrix, column) + pair * matrix->block, panel->block = matrix->block;
    }
}

static void multiply_strips(const StripProduct *own) {
    _Alignas(64) uint32_t room[PANEL_NUMBERS / 2 * STRIP];
    for (int strip = 0; strip < 2; strip++)
        for (int64_t first = 0; first < own->width; first += PANEL_NUMBERS) {
            Panel panel = {.first = first, .numbers = smaller(own->width - first, PANEL_NUMBERS)};
            take_weights(&panel, &own->strips, strip, room);
            look_ahead(&panel, &own->next, strip);
            for (int64_t part = 0; part < own->parts; part++)
                panel_part(own, &panel, part, own->sums[part] + strip * STRIP);
        }
}

#else

enum { DOT_ROWS = 6 }; /* whose sums, times four, leave registers for weights */

INLINE void strips_begin(int64_t rows) { (void)rows; }
INLINE void strips_end(void) {}

/* Two strips' weights, a line every `block` words. */
typedef struct {
    const uint32_t *at[2];
    int64_t block;
} Lines;

INLINE void multiply_rows(const StripProduct *own, const Lines *lines, int64_t part, int64_t first_row, int rows) {
    const uint16_t *numbers_of_x = own->x + (first_of_part(own, part) + first_row) * own->stride;
    const uint32_t *x = (const uint32_t *)(const void *)numbers_of_x;
    const uint32_t *first = lines->at[0], *second = lines->at[1];
    int64_t pairs = own->width / 2, stride = own->stride / 2;
    __m512 sums[DOT_ROWS][4];
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int v = 0; v < 4; v++) sums[row][v] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < pairs; pair++, first += lines->block, second += lines->block) {
        __m512i weights[4] = {_mm512_loadu_si512(first), _mm512_loadu_si512(first + LANES),
                              _mm512_loadu_si512(second), _mm512_loadu_si512(second + LANES)};
        UNROLL for (int row = 0; row < rows; row++) {
            __m512i numbers = _mm512_set1_epi32((int32_t)x[row * stride + pair]);
            UNROLL for (int v = 0; v < 4; v++)
                sums[row][v] = _mm512_dpbf16_ps(sums[row][v], (__m512bh)numbers, (__m512bh)weights[v]);
        }
    }
    float *to = own->sums[part] + first_row * WIDE;
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int v = 0; v < 4; v++) _mm512_storeu_ps(to + row * WIDE + v * LANES, sums[row][v]);
}

static void multiply_part(const StripProduct *own, const Lines *lines, int64_t part) {
    int64_t row = 0;
    for (; row + DOT_ROWS <= own->rows; row += DOT_ROWS) multiply_rows(own, lines, part, row, DOT_ROWS);
    switch (own->rows - row) {
        case 1: multiply_rows(own, lines, part, row, 1); break;
        case 2: multiply_rows(own, lines, part, row, 2); break;
        case 3: multiply_rows(own, lines, part, row, 3); break;
        case 4: multiply_rows(own, lines, part, row, 4); break;
        case 5: multiply_rows(own, lines, part, row, 5); break;
        default: break;
    }
}

/* Weights in 12 bits are unpacked once for all rows. */
INLINE Lines lines_of(const StripProduct *own) {
    const Matrix *matrix = own->strips.matrix;
    const int64_t *columns = own->strips.columns;
    if (matrix->layout != BFLOAT12_BLOCKS)
        return (Lines){{strip_at(matrix, columns[0]), strip_at(matrix, columns[1])}, matrix->block};
    const Short from = short_of(matrix);
    int64_t pairs = own->width / 2;
    for (int strip = 0; strip < 2; strip++)
        short_unpack(&from, first_line(&from, columns[strip]), columns[strip] % from.block, pairs,
                     own->room + strip * pairs * STRIP);
    return (Lines){{own->room, own->room + pairs * STRIP}, STRIP};
}

static void multiply_strips(const StripProduct *own) {
    const Lines lines = lines_of(own);
    for (int64_t part = 0; part < own->parts; part++) multiply_part(own, &lines, part);
}

#endif

/* Words of `room` for inputs of `width`. */
INLINE int64_t strip_room(int64_t width) { return HAS_AMX ? 0 : width * STRIP; }

#endif
