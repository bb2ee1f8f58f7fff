/* What lies between a prompt's products, in one pass each: numbers are read once, computed in float32, rounded once. */
#include <math.h>

#include "counts.h"
#include "engine.h"
#include "pointwise.h"
#include "prompt.h"

enum { PIECE_ROWS = 16 };

typedef void (*RowTask)(const void *job, int64_t row, float *room);

typedef struct {
    const void *job;
    RowTask task;
    float *room;
    int64_t rows, room_floats; /* room of a thread */
} Rows;

static void rows_piece(void *context, long piece, int thread) {
    const Rows *rows = context;
    int64_t begin = piece * PIECE_ROWS, end = smaller(begin + PIECE_ROWS, rows->rows);
    for (int64_t row = begin; row < end; row++) rows->task(rows->job, row, rows->room + thread * rows->room_floats);
}

/* `floats` numbers of room for each row; returns 0, or -1 without memory. */
static int32_t run_rows(Workers *workers, const void *job, RowTask task, int64_t count, int64_t floats) {
    Rows rows = {.job = job, .task = task, .rows = count, .room_floats = up(floats, 16)};
    rows.room = workers_room(workers, (size_t)(pool_threads(workers->pool) * rows.room_floats) * sizeof(float));
    if (rows.room == NULL) return -1;
    pool_run(workers->pool, rows_piece, &rows, (long)parts_of(count, PIECE_ROWS));
    return 0;
}

static void swiglu_row(const void *job, int64_t row, float *room) {
    const RowsJob *own = job;
    read_row(own->from[row], 0, 2 * own->width, (int)own->is_bfloat16, room);
    swiglu(room, own->width, room + 2 * own->width);
    write_row(room + 2 * own->width, own->width, (int)own->is_bfloat16, own->out, row * own->width);
}

/* from [rows] → gates, then ups; out [rows, width] */
EXPORT int32_t vl2_swiglu_rows(Workers *workers, const RowsJob *own) {
    return run_rows(workers, own, swiglu_row, own->rows, 3 * own->width);
}

INLINE void add_weighted_row(float *sum, float weight, const void *from, int64_t width, int is_bfloat16) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES)
        store_floats(sum + i, load_floats(sum + i) + weight * values_at(from, i, is_bfloat16));
    for (; i < width; i++) sum[i] += weight * value_at(from, i, is_bfloat16);
}

static void add_row(float *sum, float weight, const void *from, int64_t width, int is_bfloat16) {
    if (is_bfloat16) add_weighted_row(sum, weight, from, width, 1);
    else add_weighted_row(sum, weight, from, width, 0);
}

static void mix_row(const void *job, int64_t row, float *sum) {
    const RowsJob *own = job;
    memset(sum, 0, (size_t)own->width * sizeof(float));
    for (int64_t pair = row * own->choices; pair < (row + 1) * own->choices; pair++)
        add_row(sum, own->weights[pair], own->from[pair], own->width, (int)own->is_bfloat16);
    if (own->others != NULL) add_row(sum, 1.0f, own->others[row], own->width, (int)own->is_bfloat16);
    write_row(sum, own->width, (int)own->is_bfloat16, own->out, row * own->width);
}

/* from [rows · choices] → results, weights [rows, choices], others [rows] → what is added, or NULL; out [rows, width] */
EXPORT int32_t vl2_mix_rows(Workers *workers, const RowsJob *own) {
    return run_rows(workers, own, mix_row, own->rows, own->width);
}

INLINE const void *row_at(const void *rows, int64_t number, int64_t is_bfloat16) {
    return (const char *)rows + number * (is_bfloat16 ? 2 : 4);
}

#if HAS_BF16_DOT

/* The same in vectors of bfloat16, whose conversions the processor knows; widths are whole pairs of vectors. */
INLINE __m512 halves_at(const uint16_t *from, int64_t first) { return (__m512)values_at(from, first, 1); }

INLINE __m512 take_sum(const uint16_t *x, const uint16_t *delta, uint16_t *sums, int64_t i, float *room) {
    __m512 value = halves_at(x, i);
    if (delta != NULL) {
        store_rounded(sums + i, _mm512_add_ps(value, halves_at(delta, i)));
        value = halves_at(sums, i);
    }
    _mm512_store_ps(room + i, value);
    return value;
}

INLINE float sum_both(__m512 one, __m512 other) { return sum_floats((Floats)_mm512_add_ps(one, other)); }

static void norm_halves(const NormJob *own, int64_t row, float *room) {
    int64_t width = own->width;
    const uint16_t *x = (const uint16_t *)own->x + row * own->x_row;
    const uint16_t *delta = own->delta == NULL ? NULL : (const uint16_t *)own->delta + row * own->delta_row;
    uint16_t *sums = (uint16_t *)own->sums + row * width, *out = (uint16_t *)own->out + row * own->out_row;
    __m512 totals[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, squares[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t i = 0; i < width; i += 2 * LANES)
        UNROLL for (int v = 0; v < 2; v++) {
            __m512 value = take_sum(x, delta, sums, i + v * LANES, room);
            totals[v] = _mm512_add_ps(totals[v], value);
            squares[v] = _mm512_fmadd_ps(value, value, squares[v]);
        }
    __m512 mean = _mm512_setzero_ps();
    if (own->bias != NULL) {
        mean = _mm512_set1_ps(sum_both(totals[0], totals[1]) / (float)width);
        squares[0] = squares[1] = _mm512_setzero_ps();
        for (int64_t i = 0; i < width; i += 2 * LANES)
            UNROLL for (int v = 0; v < 2; v++) {
                __m512 value = _mm512_sub_ps(_mm512_load_ps(room + i + v * LANES), mean);
                squares[v] = _mm512_fmadd_ps(value, value, squares[v]);
            }
    }
    __m512 factor = _mm512_set1_ps(1.0f / sqrtf(sum_both(squares[0], squares[1]) / (float)width + (float)own->eps));
    for (int64_t i = 0; i < width; i += LANES) {
        __m512 value = _mm512_mul_ps(_mm512_sub_ps(_mm512_load_ps(room + i), mean), factor);
        __m512 weight = _mm512_loadu_ps(own->weights + i);
        __m512 bias = own->bias == NULL ? _mm512_setzero_ps() : _mm512_loadu_ps(own->bias + i);
        store_rounded(out + i, _mm512_fmadd_ps(value, weight, bias));
    }
}

#endif

static void norm_row(const void *job, int64_t row, float *x) {
    const NormJob *own = job;
    int64_t width = own->width;
    int is_bfloat16 = (int)own->is_bfloat16;
#if HAS_BF16_DOT
    if (is_bfloat16 && width % (2 * LANES) == 0) {
        norm_halves(own, row, x);
        return;
    }
#endif
    read_row(own->x, row * own->x_row, width, is_bfloat16, x);
    if (own->delta != NULL) {
        add_row(x, 1.0f, row_at(own->delta, row * own->delta_row, is_bfloat16), width, is_bfloat16);
        write_row(x, width, is_bfloat16, own->sums, row * width);
        read_row(own->sums, row * width, width, is_bfloat16, x);
    }
    if (own->bias == NULL) rms_norm(x, own->weights, (float)own->eps, width, x);
    else layer_norm(x, own->weights, own->bias, (float)own->eps, width, x);
    write_row(x, width, is_bfloat16, own->out, row * own->out_row);
}

EXPORT int32_t vl2_norm_rows(Workers *workers, const NormJob *own) {
    return run_rows(workers, own, norm_row, own->rows, own->width);
}

#if HAS_BF16_DOT

/* A head of bfloat16, whose halves are whole vectors. */
INLINE void rotate_head(const uint16_t *from, const float *cos, const float *sin, int64_t dim, uint16_t *to) {
    for (int64_t i = 0; i < dim / 2; i += LANES) {
        __m512 a = halves_at(from, i), b = halves_at(from, dim / 2 + i), c = _mm512_loadu_ps(cos + i), s = _mm512_loadu_ps(sin + i);
        store_rounded(to + i, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
        store_rounded(to + dim / 2 + i, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
    }
}

static void heads_halves(const HeadsJob *own, int64_t row) {
    int64_t dim = own->dim, kv_width = own->kv_heads * dim, q_width = own->heads * dim, slot = own->slots[row];
    const float *cos = own->cos + own->positions[row] * (dim / 2), *sin = own->sin + own->positions[row] * (dim / 2);
    const uint16_t *from = (const uint16_t *)own->qkv + row * own->qkv_row;
    uint16_t *q = (uint16_t *)own->q + row * q_width, *keys = (uint16_t *)own->pool + slot * kv_width;
    for (int64_t at = 0; at < q_width; at += dim) rotate_head(from + at, cos, sin, dim, q + at);
    for (int64_t at = 0; at < kv_width; at += dim) rotate_head(from + q_width + at, cos, sin, dim, keys + at);
    memcpy(keys + own->num_slots * kv_width, from + q_width + kv_width, (size_t)kv_width * sizeof *keys);
}

#endif

static void heads_row(const void *job, int64_t row, float *x) {
    const HeadsJob *own = job;
#if HAS_BF16_DOT
    if (own->is_bfloat16 && own->dim % (2 * LANES) == 0) {
        heads_halves(own, row);
        return;
    }
#endif
    int64_t dim = own->dim, kv_width = own->kv_heads * dim, q_width = own->heads * dim, slot = own->slots[row];
    const float *cos = own->cos + own->positions[row] * (dim / 2), *sin = own->sin + own->positions[row] * (dim / 2);
    read_row(own->qkv, row * own->qkv_row, q_width + 2 * kv_width, own->is_bfloat16, x);
    for (int64_t head = 0; head < own->heads + own->kv_heads; head++) rotate_halves(x + head * dim, cos, sin, dim);
    write_row(x, q_width, own->is_bfloat16, own->q, row * q_width);
    write_row(x + q_width, kv_width, own->is_bfloat16, own->pool, slot * kv_width);
    write_row(x + q_width + kv_width, kv_width, own->is_bfloat16, own->pool, (own->num_slots + slot) * kv_width);
}

EXPORT int32_t vl2_write_heads(Workers *workers, const HeadsJob *own) {
    return run_rows(workers, own, heads_row, own->rows, (own->heads + 2 * own->kv_heads) * own->dim);
}

static void latent_row(const void *job, int64_t row, float *x) {
    const LatentJob *own = job;
    int64_t half = own->rope_dim / 2, stride = own->rank + own->rope_dim, position = own->positions[row];
    read_row(own->x, row * own->x_row, stride, (int)own->is_bfloat16, x);
    rms_norm(x, own->weights, (float)own->eps, own->rank, x);
    rotate_pairs(x + own->rank, own->cos + position * half, own->sin + position * half, own->rope_dim);
    write_row(x, stride, (int)own->is_bfloat16, own->out, own->slots[row] * stride);
}

EXPORT int32_t vl2_write_latent(Workers *workers, const LatentJob *own) {
    return run_rows(workers, own, latent_row, own->rows, own->rank + own->rope_dim);
}

#if HAS_BF16_DOT

/* Pairs of bfloat16, in one word each. */
INLINE void rotate_words(const uint16_t *from, const float *cos, const float *sin, int64_t count, uint16_t *to) {
    for (int64_t i = 0; i < count; i += LANES) {
        __mmask16 given = first_lanes(count - i);
        Words words = (Words)_mm512_maskz_loadu_epi32(given, from + 2 * i);
        __m512 a = (__m512)first_of_pairs(words), b = (__m512)second_of_pairs(words);
        __m512 c = _mm512_maskz_loadu_ps(given, cos + i), s = _mm512_maskz_loadu_ps(given, sin + i);
        __m256i first = (__m256i)_mm512_cvtneps_pbh(_mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
        __m256i second = (__m256i)_mm512_cvtneps_pbh(_mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
        __m512i both = _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
        _mm512_mask_storeu_epi32(to + 2 * i, given, both);
    }
}

static void queries_halves(const LatentJob *own, int64_t row) {
    int64_t half = own->rope_dim / 2, width = own->heads * own->head_width, position = own->positions[row];
    const uint16_t *from = (const uint16_t *)own->x + row * own->x_row;
    uint16_t *to = (uint16_t *)own->out + row * width;
    if (from != to) memcpy(to, from, (size_t)width * sizeof *to);
    for (int64_t end = own->head_width; end <= width; end += own->head_width)
        rotate_words(from + end - own->rope_dim, own->cos + position * half, own->sin + position * half, half,
                     to + end - own->rope_dim);
}

#endif

static void queries_row(const void *job, int64_t row, float *x) {
    const LatentJob *own = job;
    int64_t half = own->rope_dim / 2, width = own->heads * own->head_width, position = own->positions[row];
#if HAS_BF16_DOT
    if (own->is_bfloat16) {
        queries_halves(own, row);
        return;
    }
#endif
    read_row(own->x, row * own->x_row, width, (int)own->is_bfloat16, x);
    for (int64_t head = 1; head <= own->heads; head++)
        rotate_pairs(x + head * own->head_width - own->rope_dim, own->cos + position * half, own->sin + position * half,
                     own->rope_dim);
    write_row(x, width, (int)own->is_bfloat16, own->out, row * width);
}

EXPORT int32_t vl2_rotate_queries(Workers *workers, const LatentJob *own) {
    return run_rows(workers, own, queries_row, own->rows, own->heads * own->head_width);
}
