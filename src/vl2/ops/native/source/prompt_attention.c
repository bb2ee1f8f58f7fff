/* Attention of many queries on one context, bfloat16, where the processor multiplies pairs of it.
 *
 * A piece is a head of keys and values, or part of its queries: what it lays them out as stays in one core's cache.
 * Queries are computed in blocks, and of the context SPLIT positions at a time: all scores, their softmax in float32, and
 * the sum of the values weighted by e^(score - largest), rounded to bfloat16 as torch's fused attention rounds them; in
 * the end over the sum of the weights before rounding. Where a split has a larger score than those before it, what they
 * gave is scaled down. A row's bits depend on its own context alone: what comes after it is added as zero. */
#include "engine.h"
#include "prompt.h"
#include "prompt_panels.h"

#if HAS_BF16_DOT

/* Half as many take the same time; for all of a long context, scores would leave the cache. */
enum { SPLIT = 512 };

typedef struct {
    const PromptAttention *own;
    Panels panels;  /* without their places */
    int64_t shares; /* pieces of a head */
    char *room;     /* [threads][thread_bytes] */
    int64_t thread_bytes;
} Job;

/* Some queries of one head. A number x[query, i] lies at [i / PANEL][query][i % PANEL] where it is multiplied. */
typedef struct {
    const PromptAttention *own;
    Panels panels;
    int64_t head, first, count; /* queries */
    __m512 scale;               /* from scores to exponents of 2 */
    uint16_t *q;                /* [dim], as above */
    float *scores;              /* [SPLIT], as above; then the weights, bfloat16 */
    float *out;                 /* [QUERIES][value_width] */
    __m512 most[QUERIES];         /* the largest scores until now, each of some positions */
    __m512 shift[QUERIES];        /* the largest one as an exponent */
    __m512 sums[QUERIES];         /* of weights, each of some positions */
} Block;

/* Positions that a query of the block sees. */
INLINE int64_t seen_by(const Block *block, int64_t row) {
    const PromptAttention *own = block->own;
    return own->is_causal ? own->context - own->rows + block->first + row + 1 : own->context;
}

/* ---- softmax */

INLINE void look_row(const float *scores, int64_t seen, __m512 *most) {
    *most = _mm512_mask_max_ps(*most, first_lanes(seen), *most, _mm512_load_ps(scores));
    *most = _mm512_mask_max_ps(*most, first_lanes(seen - LANES), *most, _mm512_load_ps(scores + LANES));
}

/* At a panel's scores, for the largest; `first` is its first position. */
INLINE void look_at(Block *block, int64_t first, const float *scores) {
    if (first + PANEL <= seen_by(block, 0))
        for (int64_t row = 0; row < block->count; row++) look_row(scores + row * PANEL, PANEL, &block->most[row]);
    else
        for (int64_t row = 0; row < block->count; row++)
            look_row(scores + row * PANEL, seen_by(block, row) - first, &block->most[row]);
}

/* The largest scores as exponents. What was summed until now is scaled to them. */
static void shift_to_largest(Block *block, int is_first) {
    for (int64_t row = 0; row < block->count; row++) {
        __m512 before = block->shift[row];
        block->shift[row] = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(block->most[row])), block->scale);
        if (is_first || _mm512_cmp_ps_mask(before, block->shift[row], _CMP_EQ_OQ)) continue;
        __m512 factor = power_of_two(_mm512_sub_ps(before, block->shift[row]));
        block->sums[row] = _mm512_mul_ps(block->sums[row], factor);
        float *out = block->out + row * block->panels.value_width;
        for (int64_t i = 0; i < block->panels.value_width; i += LANES)
            _mm512_store_ps(out + i, _mm512_mul_ps(_mm512_load_ps(out + i), factor));
    }
}

INLINE void weigh_row(Block *block, int64_t row, const float *scores, int64_t seen, uint16_t *weights) {
    __m512 a = _mm512_fmsub_ps(_mm512_load_ps(scores), block->scale, block->shift[row]);
    __m512 b = _mm512_fmsub_ps(_mm512_load_ps(scores + LANES), block->scale, block->shift[row]);
    a = _mm512_maskz_mov_ps(first_lanes(seen), rough_power_of_two(a));
    b = _mm512_maskz_mov_ps(first_lanes(seen - LANES), rough_power_of_two(b));
    block->sums[row] = _mm512_add_ps(block->sums[row], _mm512_add_ps(a, b));
    _mm512_store_si512(weights, (__m512i)_mm512_cvtne2ps_pbh(b, a));
}

/* Of a panel's positions, 0 where a row does not see one. */
INLINE void weigh(Block *block, int64_t first, const float *scores, uint16_t *weights) {
    if (first + PANEL <= seen_by(block, 0))
        for (int64_t row = 0; row < block->count; row++)
            weigh_row(block, row, scores + row * PANEL, PANEL, weights + row * PANEL);
    else
        for (int64_t row = 0; row < block->count; row++)
            weigh_row(block, row, scores + row * PANEL, seen_by(block, row) - first, weights + row * PANEL);
}

/* ---- blocks */

static void copy_queries(Block *block) {
    const PromptAttention *own = block->own;
    for (int64_t i = 0; i < own->dim; i += LANES) {
        uint16_t *to = block->q + i / PANEL * PANEL * QUERIES + i % PANEL;
        const uint16_t *from = own->q + block->first * own->q_row + block->head * own->q_head + i;
        __mmask16 given = first_lanes(own->dim - i);
        for (int64_t row = 0; row < block->count; row++)
            _mm256_store_si256((void *)(to + row * PANEL), _mm256_maskz_loadu_epi16(given, from + row * own->q_row));
    }
}

/* Scores of a panel are looked at one panel later: by then they have been stored, and nothing waits. */
static void score(Block *block, int64_t first, int64_t end) {
    const Panels *panels = &block->panels;
    float *scores = block->scores;
    for (int64_t at = first; at < end; at += PANEL, scores += PANEL * QUERIES) {
        multiply_panel((const uint32_t *)block->q, panels->keys + at * panels->key_pairs, panels->key_pairs, 2, scores,
                       PANEL, 0);
        if (at > first) look_at(block, at - PANEL, scores - PANEL * QUERIES);
    }
    look_at(block, (end - 1) / PANEL * PANEL, scores - PANEL * QUERIES);
}

static void add_values(Block *block, int64_t first, int64_t end) {
    const Panels *panels = &block->panels;
    const uint32_t *weights = (const uint32_t *)block->scores;
    int64_t width = panels->value_width, pairs = up((end - first + 1) / 2, STEP);
    for (int64_t column = 0; column < width; column += PANEL) {
        const uint32_t *panel = panels->values + column * panels->pairs;
        if (column + PANEL <= width)
            multiply_panel(weights, panel + first / 2 * PANEL, pairs, 2, block->out + column, width, first > 0);
        else
            multiply_panel(weights, panel + first / 2 * LANES, pairs, 1, block->out + column, width, first > 0);
    }
}

static void store_rows(const Block *block) {
    const PromptAttention *own = block->own;
    for (int64_t row = 0; row < block->count; row++) {
        const float *from = block->out + row * block->panels.value_width;
        uint16_t *to = own->out + (block->first + row) * own->out_row + block->head * own->out_head;
        __m512 factor = _mm512_set1_ps(1.0f / sum_floats((Floats)block->sums[row]));
        for (int64_t i = 0; i < own->value_dim; i += LANES) {
            __m512 values = _mm512_mul_ps(_mm512_load_ps(from + i), factor);
            _mm256_mask_storeu_epi16(to + i, first_lanes(own->value_dim - i), (__m256i)_mm512_cvtneps_pbh(values));
        }
    }
}

static void attend_block(Block *block) {
    for (int row = 0; row < QUERIES; row++)
        block->most[row] = _mm512_set1_ps(-__builtin_inff()), block->sums[row] = _mm512_setzero_ps();
    copy_queries(block);
    int64_t seen = seen_by(block, block->count - 1);
    for (int64_t first = 0; first < seen; first += SPLIT) {
        int64_t end = smaller(first + SPLIT, seen);
        score(block, first, end);
        shift_to_largest(block, first == 0);
        for (int64_t at = 0; at < end - first; at += PANEL)
            weigh(block, first + at, block->scores + at * QUERIES, (uint16_t *)block->scores + at * QUERIES);
        add_values(block, first, end);
    }
    store_rows(block);
}

/* ---- pieces */

INLINE int64_t query_bytes(const PromptAttention *own) { return QUERIES * up(own->dim, PANEL) * 2; }

static int64_t thread_bytes(const PromptAttention *own, const Panels *panels) {
    int64_t numbers = panels->positions * panels->key_pairs + panels->pairs * panels->value_width;
    return up(4 * (numbers + QUERIES * (SPLIT + panels->value_width)) + query_bytes(own), 64);
}

static Block block_of(const Job *job, int thread) {
    Block block = {.own = job->own, .panels = job->panels};
    Panels *panels = &block.panels;
    block.scale = _mm512_set1_ps(job->own->scale * 1.44269504088896341f);
    block.scores = (void *)(job->room + thread * job->thread_bytes);
    block.out = block.scores + QUERIES * SPLIT;
    panels->keys = (uint32_t *)(block.out + QUERIES * panels->value_width);
    panels->values = panels->keys + panels->positions * panels->key_pairs;
    block.q = (uint16_t *)(panels->values + panels->pairs * panels->value_width);
    memset(block.q, 0, (size_t)query_bytes(job->own));
    return block;
}

static void attend_piece(void *context, long piece, int thread) {
    const Job *job = context;
    const PromptAttention *own = job->own;
    Block block = block_of(job, thread);
    int64_t kv_head = piece / job->shares, group = own->heads / own->kv_heads, blocks = up(own->rows, QUERIES) / QUERIES;
    lay_out_keys(&block.panels, own, kv_head);
    lay_out_values(&block.panels, own, kv_head);
#if HAS_AMX
    tiles_begin(QUERIES);
#endif
    for (int64_t idx = piece % job->shares; idx < group * blocks; idx += job->shares) {
        block.head = kv_head * group + idx / blocks, block.first = idx % blocks * QUERIES;
        block.count = smaller(own->rows - block.first, QUERIES);
        attend_block(&block);
    }
#if HAS_AMX
    tiles_end();
#endif
}

/* Pieces of a head for which all are done soonest: each lays out keys and values for itself, which takes as long as
 * LAYOUT_ROWS queries. */
static int64_t choose_shares(const PromptAttention *own, int64_t threads) {
    enum { LAYOUT_ROWS = 64 };
    int64_t rows = own->rows * (own->heads / own->kv_heads), best = 1, least = INT64_MAX;
    for (int64_t shares = 1; shares <= smaller(threads, up(rows, QUERIES) / QUERIES); shares++) {
        int64_t rounds = up(own->kv_heads * shares, threads) / threads, cost = rounds * (rows / shares + LAYOUT_ROWS);
        if (cost < least) least = cost, best = shares;
    }
    return best;
}

/* Returns 0, or -1 without memory. */
EXPORT int32_t vl2_attend_prompt(Workers *workers, const PromptAttention *own) {
    int64_t threads = pool_threads(workers->pool);
    Job job = {.own = own, .panels = panels_of(own), .shares = choose_shares(own, threads)};
    job.thread_bytes = thread_bytes(own, &job.panels);
    job.room = workers_room(workers, (size_t)(threads * job.thread_bytes));
    if (job.room == NULL) return -1;
    pool_run(workers->pool, attend_piece, &job, (long)(own->kv_heads * job.shares));
    return 0;
}

#endif
