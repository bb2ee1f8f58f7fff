/* y = x Wᵀ + b of many rows on matrix units, rounded once to bfloat16 or not at all; a row's bits depend on that row alone. */
#include "amx.h"
#include "engine.h"
#include "prompt.h"

#if HAS_AMX

#include "strips.h"

enum { PIECE_ROWS = 256 }; /* of x, which stay in a core's second cache from one piece to the next */

typedef struct {
    const LinearJob *own;
    int64_t wide, parts; /* pieces side by side, and one below the other: of equally many rows */
} Job;

/* gelu(x), the tanh form: x / (1 + e^(-2 √(2/π) (x + 0.044715 x³))) */
INLINE __m512 gelu_of(__m512 x) {
    __m512 square = _mm512_mul_ps(x, x);
    __m512 inner = _mm512_mul_ps(x, _mm512_fmadd_ps(square, _mm512_set1_ps(0.044715f), _mm512_set1_ps(1.0f)));
    return times_sigmoid(x, inner, -1.5957691216057308f);
}

/* x (1 + erf(x / √2)) / 2; erf to 2e-7 (Abramowitz and Stegun, 7.1.26):
 * 1 - (a1 t + … + a5 t⁵) e^(-x² / 2), t = 1 / (1 + p |x|) */
INLINE __m512 erf_gelu_of(__m512 x) {
    __m512 size = _mm512_abs_ps(x), t = _mm512_fmadd_ps(size, _mm512_set1_ps(0.3275911f * 0.70710678f), _mm512_set1_ps(1.0f));
    t = _mm512_div_ps(_mm512_set1_ps(1.0f), t);
    __m512 sum = _mm512_set1_ps(1.061405429f);
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(-1.453152027f));
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(1.421413741f));
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(-0.284496736f));
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(0.254829592f));
    __m512 power = power_of_two(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.5f * 1.44269504088896341f)));
    __m512 rest = _mm512_mul_ps(_mm512_mul_ps(sum, t), _mm512_mul_ps(power, _mm512_mul_ps(size, _mm512_set1_ps(0.5f))));
    return _mm512_sub_ps(_mm512_max_ps(x, _mm512_setzero_ps()), rest); /* |x| is x, or -x where erf is negative, too */
}

INLINE __m512 finished(__m512 sum, __m512 bias, Gelu gelu) {
    __m512 value = _mm512_add_ps(sum, bias);
    return gelu == TANH_GELU ? gelu_of(value) : gelu == ERF_GELU ? erf_gelu_of(value) : value;
}

/* sums [rows, WIDE] of the columns from `column` on → their rows of y, from `row` on */
INLINE void store_rows(const LinearJob *own, const float *sums, int64_t row, int64_t rows, int64_t column, Gelu gelu) {
    int64_t width = own->weight.out_width, left = width - column;
    __m512 bias[WIDE / LANES];
    __mmask16 masks[WIDE / LANES];
    UNROLL for (int v = 0; v < WIDE / LANES; v++) {
        masks[v] = first_lanes(left - v * LANES);
        bias[v] = own->weight.bias == NULL ? _mm512_setzero_ps()
                                           : _mm512_maskz_loadu_ps(masks[v], own->weight.bias + column + v * LANES);
    }
    uint16_t *out = (uint16_t *)own->out + row * own->out_row + column;
    if (left >= WIDE) {
        for (; rows > 0; rows--, sums += WIDE, out += own->out_row)
            UNROLL for (int v = 0; v < WIDE / LANES; v += 2)
                store_both_rounded(out + v * LANES, finished(_mm512_loadu_ps(sums + v * LANES), bias[v], gelu),
                                   finished(_mm512_loadu_ps(sums + (v + 1) * LANES), bias[v + 1], gelu));
        return;
    }
    for (; rows > 0; rows--, sums += WIDE, out += own->out_row)
        UNROLL for (int v = 0; v < WIDE / LANES; v++) {
            __m512 value = finished(_mm512_loadu_ps(sums + v * LANES), bias[v], gelu);
            _mm256_mask_storeu_epi16(out + v * LANES, masks[v], (__m256i)_mm512_cvtneps_pbh(value));
        }
}

INLINE Strips strips_of(const LinearJob *own, int64_t column) {
    return (Strips){&own->weight, {column, smaller(column + STRIP, own->weight.out_width - 1) / STRIP * STRIP}};
}

static void linear_piece(void *context, long idx, int thread) {
    const Job *job = context;
    const LinearJob *own = job->own;
    (void)thread;
    int64_t column = idx % job->wide * WIDE, part_idx = idx / job->wide;
    int64_t begin = part_idx * own->rows / job->parts, end = (part_idx + 1) * own->rows / job->parts;
    float sums[PIECE_ROWS / MOST_ROWS][MOST_ROWS * WIDE];
    StripProduct product = {.x = own->x + begin * own->x_row, .stride = own->x_row, .width = up(own->weight.in_width, TILE_NUMBERS),
                            .strips = strips_of(own, column), .sums = sums};
    product.next = column + WIDE < own->weight.out_width ? strips_of(own, column + WIDE) : product.strips;
    cut_rows(&product, end - begin);
    strips_begin(product.rows);
    multiply_strips(&product);
    strips_end();
    for (int64_t part = 0; part < product.parts; part++) {
        int64_t row = begin + first_of_part(&product, part);
        if (own->gelu == TANH_GELU) store_rows(own, sums[part], row, product.rows, column, TANH_GELU);
        else if (own->gelu == ERF_GELU) store_rows(own, sums[part], row, product.rows, column, ERF_GELU);
        else store_rows(own, sums[part], row, product.rows, column, NO_GELU);
    }
}

EXPORT int32_t vl2_linear_rows(Workers *workers, const LinearJob *own) {
    int64_t parts = parts_of(own->rows, PIECE_ROWS);
    Job job = {.own = own, .wide = parts_of(own->weight.out_width, WIDE), .parts = parts > 1 ? up(parts, 2) : parts};
    pool_run(workers->pool, linear_piece, &job, (long)(job.parts * job.wide));
    return 0;
}

/* ---- not rounded: as a step of decoding multiplies, whose bits these are */

static void project_piece(void *context, long idx, int thread) {
    (void)thread;
    product_piece(context, idx);
}

/* x as operands are, filled up with zeros. */
static Operand take_operand(const LinearJob *own, float *room) {
    int64_t width = own->weight.in_width, stride = operand_stride(width);
    for (int64_t row = 0; row < own->rows; row++) {
        uint16_t *to = (uint16_t *)(void *)(room + row * stride);
        memcpy(to, own->x + row * own->x_row, (size_t)width * sizeof *to);
        memset(to + width, 0, (size_t)(stride - width) * sizeof *to);
    }
    return (Operand){.pairs = room, .stride = stride};
}

/* Without GELU. Returns 0, or -1 without memory. */
EXPORT int32_t vl2_project_rows(Workers *workers, const LinearJob *own) {
    int64_t numbers = own->rows * operand_stride(own->weight.in_width);
    float *room = workers_room(workers, (size_t)(numbers + own->rows) * sizeof(float));
    if (room == NULL) return -1;
    const Operand operand = take_operand(own, room);
    int32_t *rows = (int32_t *)(void *)(room + numbers);
    for (int32_t row = 0; row < own->rows; row++) rows[row] = row;
    Product product = {&own->weight, &operand, own->out, own->weight.out_width, rows, rows, own->rows};
    pool_run(workers->pool, project_piece, &product, (long)product_pieces(&product));
    return 0;
}

#endif
