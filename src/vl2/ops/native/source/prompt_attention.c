/* Attention of many queries on one context, bfloat16, where the processor multiplies pairs of it (vdpbf16ps).
 *
 * Keys and values of each head are laid out once as panels, then pieces of BLOCK queries are computed: all scores of
 * the piece, their softmax in float32, and the sum of the values weighted by e^(score - largest), rounded to bfloat16
 * as torch's fused attention rounds them, over the sum of those before rounding. A row's bits depend on its own
 * context alone: what comes after it is added as zero. */
#include "engine.h"
#include "prompt.h"

#if HAS_BF16_DOT

enum { ROWS = 6, VECTORS = 4, WIDE = VECTORS * LANES, BLOCK = 2 * ROWS };

typedef struct {
    const PromptAttention *own;
    int64_t filled, pairs, value_width; /* context in whole panels, pairs of it; value_dim in whole vectors */
    uint32_t *keys;                     /* [kv_heads][panels of WIDE positions][dim / 2][WIDE] */
    uint32_t *values;                   /* [kv_heads][panels of up to WIDE columns][pairs][columns of the panel] */
    char *scratch;
    int64_t scratch_bytes; /* of a thread */
    int64_t first;         /* piece of queries: a pool's loop has a most */
} Job;

typedef struct {
    uint32_t *q;     /* [BLOCK][dim / 2] */
    float *scores;   /* [BLOCK][filled] */
    uint16_t *probs; /* [BLOCK][filled] */
    float *out;      /* [BLOCK][value_width] */
} Scratch;

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

/* ROWS rows of pairs times a panel [pairs][vectors · LANES] → out. */
INLINE void multiply_panel(const uint32_t *x, int64_t x_row, const uint32_t *panel, int64_t pairs, int vectors,
                           float *out, int64_t out_row) {
    __m512 sums[ROWS][VECTORS];
    UNROLL for (int row = 0; row < ROWS; row++)
        UNROLL for (int i = 0; i < VECTORS; i++) sums[row][i] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < pairs; pair++, panel += vectors * LANES) {
        __m512i columns[VECTORS];
        UNROLL for (int i = 0; i < VECTORS; i++)
            if (i < vectors) columns[i] = _mm512_load_si512(panel + i * LANES);
        UNROLL for (int row = 0; row < ROWS; row++) {
            __m512i numbers = _mm512_set1_epi32((int32_t)x[row * x_row + pair]);
            UNROLL for (int i = 0; i < VECTORS; i++)
                if (i < vectors)
                    sums[row][i] = _mm512_dpbf16_ps(sums[row][i], (__m512bh)numbers, (__m512bh)columns[i]);
        }
    }
    UNROLL for (int row = 0; row < ROWS; row++)
        UNROLL for (int i = 0; i < VECTORS; i++)
            if (i < vectors) _mm512_storeu_ps(out + row * out_row + i * LANES, sums[row][i]);
}

static void multiply_rows(const uint32_t *x, int64_t x_row, const uint32_t *panel, int64_t pairs, int64_t vectors,
                          float *out, int64_t out_row) {
    for (int64_t row = 0; row < BLOCK; row += ROWS, x += ROWS * x_row, out += ROWS * out_row) {
        switch (vectors) {
        case 1: multiply_panel(x, x_row, panel, pairs, 1, out, out_row); break;
        case 2: multiply_panel(x, x_row, panel, pairs, 2, out, out_row); break;
        case 3: multiply_panel(x, x_row, panel, pairs, 3, out, out_row); break;
        default: multiply_panel(x, x_row, panel, pairs, 4, out, out_row);
        }
    }
}

/* e^x for x ≤ 0, as `exponential` (simd.h). */
INLINE __m512 exponentials(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693359375f), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

INLINE __mmask16 first_lanes(int64_t count) { return (__mmask16)(count >= LANES ? 0xffff : (1u << count) - 1); }

/* e^(scale · (score - largest)) of the first `count` scores, zeros up to `end`; returns their sum. */
static float weigh(const float *scores, int64_t count, int64_t end, float scale, uint16_t *probs) {
    __m512 most = _mm512_set1_ps(-__builtin_inff()), sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += LANES)
        most = _mm512_mask_max_ps(most, first_lanes(count - i), most, _mm512_load_ps(scores + i));
    __m512 scales = _mm512_set1_ps(scale), largest = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (int64_t i = 0; i < end; i += LANES) {
        __m512 below = _mm512_mul_ps(_mm512_sub_ps(_mm512_load_ps(scores + i), largest), scales);
        __m512 values = _mm512_maskz_mov_ps(first_lanes(i < count ? count - i : 0), exponentials(below));
        sum = _mm512_add_ps(sum, values);
        _mm256_store_si256((void *)(probs + i), (__m256i)_mm512_cvtneps_pbh(values));
    }
    return sum_floats((Floats)sum);
}

/* ---- pieces: one head's keys and values; BLOCK queries of one head */

static void lay_out_keys(const Job *job, int64_t head) {
    const PromptAttention *own = job->own;
    int64_t pairs = own->dim / 2;
    uint32_t *panel = job->keys + head * job->filled * pairs;
    for (int64_t first = 0; first < job->filled; first += WIDE, panel += WIDE * pairs)
        for (int64_t i = 0; i < WIDE; i++) {
            const uint16_t *key = own->keys + (first + i) * own->key_row + head * own->key_head;
            for (int64_t pair = 0; pair < pairs; pair++) {
                uint32_t word = 0;
                if (first + i < own->context) memcpy(&word, key + 2 * pair, sizeof word);
                panel[pair * WIDE + i] = word;
            }
        }
}

INLINE __m512i widen_some(const uint16_t *from, int64_t count) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(count), from));
}

static void lay_out_values(const Job *job, int64_t head) {
    const PromptAttention *own = job->own;
    uint32_t *to = job->values + head * job->pairs * job->value_width;
    for (int64_t first = 0; first < job->value_width; first += WIDE) {
        int64_t end = smaller(first + WIDE, job->value_width);
        for (int64_t position = 0; position < 2 * job->pairs; position += 2) {
            const uint16_t *row = own->values + position * own->value_row + head * own->value_head;
            for (int64_t column = first; column < end; column += LANES, to += LANES) {
                __m512i words = widen_some(row + column, own->value_dim - column);
                if (position + 1 < own->context) {
                    __m512i next = widen_some(row + own->value_row + column, own->value_dim - column);
                    words = _mm512_or_si512(words, _mm512_slli_epi32(next, 16));
                }
                _mm512_store_si512(to, words);
            }
        }
    }
}

static void lay_out_piece(void *context, long piece, int thread) {
    const Job *job = context;
    (void)thread;
    if (piece < job->own->kv_heads) lay_out_keys(job, piece);
    else lay_out_values(job, piece - job->own->kv_heads);
}

static Scratch scratch_of(const Job *job, int thread) {
    Scratch scratch;
    char *at = job->scratch + thread * job->scratch_bytes;
    scratch.scores = (void *)at, at += BLOCK * job->filled * 4;
    scratch.probs = (void *)at, at += BLOCK * job->filled * 2;
    scratch.out = (void *)at, at += BLOCK * job->value_width * 4;
    scratch.q = (void *)at;
    return scratch;
}

static void copy_queries(const PromptAttention *own, int64_t first, int64_t count, int64_t head, uint32_t *to) {
    size_t bytes = (size_t)own->dim * sizeof(uint16_t);
    memset(to, 0, BLOCK * bytes);
    for (int64_t row = 0; row < count; row++)
        memcpy(to + row * own->dim / 2, own->q + (first + row) * own->q_row + head * own->q_head, bytes);
}

static void store_row(const float *x, float factor, int64_t width, uint16_t *to) {
    for (int64_t i = 0; i < width; i += LANES) {
        __m512 values = _mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(factor));
        _mm256_mask_storeu_epi16(to + i, first_lanes(width - i), (__m256i)_mm512_cvtneps_pbh(values));
    }
}

static void attend_piece(void *context, long piece, int thread) {
    const Job *job = context;
    const PromptAttention *own = job->own;
    Scratch scratch = scratch_of(job, thread);
    int64_t head = (job->first + piece) % own->heads, first = (job->first + piece) / own->heads * BLOCK;
    int64_t kv_head = head / (own->heads / own->kv_heads), count = smaller(own->rows - first, BLOCK);
    int64_t before = own->is_causal ? own->context - own->rows + 1 : own->context, step = own->is_causal ? 1 : 0;
    int64_t seen = before + step * (first + count - 1), end = up(seen, LANES), pairs = (seen + 1) / 2;
    const uint32_t *keys = job->keys + kv_head * job->filled * (own->dim / 2);
    const uint32_t *values = job->values + kv_head * job->pairs * job->value_width;
    copy_queries(own, first, count, head, scratch.q);
    for (int64_t at = 0; at < seen; at += WIDE)
        multiply_rows(scratch.q, own->dim / 2, keys + at * (own->dim / 2), own->dim / 2, VECTORS, scratch.scores + at,
                      job->filled);
    float sums[BLOCK];
    for (int64_t row = 0; row < count; row++)
        sums[row] = weigh(scratch.scores + row * job->filled, before + step * (first + row), end, own->scale,
                          scratch.probs + row * job->filled);
    for (int64_t column = 0; column < job->value_width; column += WIDE) {
        int64_t vectors = smaller((job->value_width - column) / LANES, VECTORS);
        multiply_rows((const uint32_t *)scratch.probs, job->filled / 2, values + column * job->pairs, pairs, vectors,
                      scratch.out + column, job->value_width);
    }
    for (int64_t row = 0; row < count; row++)
        store_row(scratch.out + row * job->value_width, 1.0f / sums[row], own->value_dim,
                  own->out + (first + row) * own->out_row + head * own->out_head);
}

/* Returns 0, or -1 without memory. */
EXPORT int32_t vl2_attend_prompt(Workers *workers, const PromptAttention *own) {
    Job job = {.own = own, .filled = up(own->context, WIDE), .pairs = (own->context + 1) / 2};
    job.value_width = up(own->value_dim, LANES);
    size_t keys = (size_t)(own->kv_heads * job.filled * (own->dim / 2)) * 4;
    size_t values = (size_t)(own->kv_heads * job.pairs * job.value_width) * 4;
    job.scratch_bytes = up(BLOCK * (job.filled * 6 + job.value_width * 4 + own->dim * 2), 64);
    char *room = workers_room(workers, keys + values + (size_t)(pool_threads(workers->pool) * job.scratch_bytes));
    if (room == NULL) return -1;
    job.keys = (void *)room, job.values = (void *)(room + keys), job.scratch = room + keys + values;
    pool_run(workers->pool, lay_out_piece, &job, (long)(2 * own->kv_heads));
    int64_t pieces = up(own->rows, BLOCK) / BLOCK * own->heads;
    for (; job.first < pieces; job.first += MOST_PIECES)
        pool_run(workers->pool, attend_piece, &job, (long)smaller(pieces - job.first, MOST_PIECES));
    return 0;
}

#endif
