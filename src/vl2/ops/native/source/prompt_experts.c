/* A prompt's experts in one call, bfloat16, where the processor multiplies pairs of it.
 *
 * (token, choice) pairs are sorted by expert. A piece takes some rows of one expert all the way: rows are gathered,
 * gates and ups multiplied, SwiGLU taken of their float32 sums, down multiplied; what lies between stays in the caches
 * of one core, which has half of the data moved and none of the waiting of a loop for each. A token's results, rounded
 * to bfloat16, are weighted and summed in float32 last. A row's bits depend on that row alone. */
#include "engine.h"
#include "prompt.h"

#if HAS_BF16_DOT

#include "strips.h"

enum {
    PIECES_OF_THREAD = 8, /* at least; fewer rows each read weights more often */
    PIECES_OF_SHARED = 2, /* of a thread, of the shared experts: those of others come after them, if there are any */
    ENOUGH_PIECE_ROWS = 128,
    MOST_PIECE_ROWS = 256,
    MIXED_ROWS = 16, /* of a piece of the last loop */
};

/* Some rows of one expert, or of the shared ones, which all tokens take. */
typedef struct {
    const Matrix *gate_up, *down;
    const int32_t *tokens; /* [rows]; NULL: from `first` on */
    int64_t first, rows;
    uint16_t *results; /* [rows, width] */
} Piece;

typedef struct {
    const ExpertsJob *own;
    Piece *pieces;
    int32_t *places, *tokens, *starts; /* the row of each pair, by expert; the token of each row; an expert's first row */
    uint16_t *results, *shared;        /* [pairs, width] by expert; [tokens, width] */
    uint16_t *scratch;                 /* of each thread: gathered rows, inner ones, strips' room */
    int64_t scratch_numbers, piece_rows, x_stride, inner_stride;
    int64_t num_pieces;
} Job;

INLINE int64_t inner_width(const Matrix *gate_up) { return gate_up->out_width / 2; }

/* ---- a piece */

INLINE __m512 swiglu_of(__m512 gate, __m512 up) { return _mm512_mul_ps(times_sigmoid(gate, gate, -1.0f), up); }

/* sums [rows, WIDE]: a strip of gates and one of ups → out [rows, STRIP] */
static void store_swiglu(const float *sums, int64_t rows, uint16_t *out, int64_t stride) {
    for (int64_t row = 0; row < rows; row++, sums += WIDE, out += stride)
        store_both_rounded(out, swiglu_of(_mm512_loadu_ps(sums), _mm512_loadu_ps(sums + STRIP)),
                           swiglu_of(_mm512_loadu_ps(sums + LANES), _mm512_loadu_ps(sums + STRIP + LANES)));
}

static void store_results(const float *sums, int64_t rows, uint16_t *out, int64_t stride) {
    for (int64_t row = 0; row < rows; row++, sums += WIDE, out += stride)
        store_wide(out, sums);
}

static void gather(const Job *job, const Piece *piece, uint16_t *x) {
    int64_t width = job->own->width;
    for (int64_t row = 0; row < piece->rows; row++) {
        int64_t token = piece->tokens == NULL ? piece->first + row : piece->tokens[row];
        memcpy(x + row * job->x_stride, job->own->x + token * job->own->x_row, (size_t)width * sizeof *x);
    }
}

/* The strips that a piece multiplies, one after the other: those of gates and ups, then those of down. */
INLINE Strips strips_of(const Piece *piece, int64_t idx) {
    int64_t inner = inner_width(piece->gate_up), ups = inner / STRIP, down = (idx - ups) * WIDE;
    if (idx < ups) return (Strips){piece->gate_up, {idx * STRIP, inner + idx * STRIP}};
    return (Strips){piece->down, {down, down + STRIP}};
}

static void expert_piece(void *context, long idx, int thread) {
    const Job *job = context;
    const Piece *piece = &job->pieces[idx];
    int64_t width = job->own->width, inner = inner_width(piece->gate_up);
    int64_t ups = inner / STRIP, all = ups + width / WIDE;
    uint16_t *x = job->scratch + thread * job->scratch_numbers, *inners = x + job->piece_rows * job->x_stride;
    float sums[MOST_PIECE_ROWS / MOST_ROWS][MOST_ROWS * WIDE];
    StripProduct product = {.sums = sums, .room = (uint32_t *)(void *)(inners + job->piece_rows * job->inner_stride)};
    cut_rows(&product, piece->rows);
    gather(job, piece, x);
    strips_begin(product.rows);
    for (int64_t at = 0; at < all; at++) {
        int is_up = at < ups;
        product.x = is_up ? x : inners, product.stride = is_up ? job->x_stride : job->inner_stride;
        product.width = is_up ? width : inner;
        product.strips = strips_of(piece, at), product.next = strips_of(piece, smaller(at + 1, all - 1));
        multiply_strips(&product);
        for (int64_t part = 0; part < product.parts; part++) {
            int64_t row = first_of_part(&product, part);
            if (is_up) store_swiglu(sums[part], product.rows, inners + row * job->inner_stride + at * STRIP, job->inner_stride);
            else store_results(sums[part], product.rows, piece->results + row * width + (at - ups) * WIDE, width);
        }
    }
    strips_end();
}

static void mix_piece(void *context, long idx, int thread) {
    const Job *job = context;
    const ExpertsJob *own = job->own;
    (void)thread;
    int64_t width = own->width, begin = idx * MIXED_ROWS, end = smaller(begin + MIXED_ROWS, own->tokens);
    for (int64_t token = begin; token < end; token++)
        for (int64_t column = 0; column < width; column += LANES) {
            Floats sum = {0};
            for (int64_t pair = token * own->choices; pair < (token + 1) * own->choices; pair++)
                sum += own->weights[pair] * values_at(job->results, job->places[pair] * width + column, 1);
            if (own->has_shared) sum += values_at(job->shared, token * width + column, 1);
            store_rounded(own->out + token * width + column, (__m512)sum);
        }
}

/* ---- the call */

static void sort_pairs(const Job *job) {
    const ExpertsJob *own = job->own;
    int64_t pairs = own->tokens * own->choices;
    int32_t *next = job->starts + 1; /* where the next row of each expert goes: in the end, where the one behind it begins */
    memset(job->starts, 0, (size_t)(own->num_experts + 2) * sizeof *job->starts);
    for (int64_t pair = 0; pair < pairs; pair++) next[own->ids[pair] + 1]++;
    for (int64_t expert = 0; expert < own->num_experts; expert++) next[expert + 1] += next[expert];
    for (int64_t pair = 0; pair < pairs; pair++) {
        job->places[pair] = next[own->ids[pair]]++;
        job->tokens[job->places[pair]] = (int32_t)(pair / own->choices);
    }
}

/* `rows` of an expert, in equal pieces. */
static void cut(Job *job, int64_t expert, int64_t rows, const int32_t *tokens, uint16_t *results) {
    const ExpertsJob *own = job->own;
    int64_t parts = parts_of(rows, job->piece_rows);
    for (int64_t part = 0; part < parts; part++) {
        int64_t first = part * rows / parts, end = (part + 1) * rows / parts;
        job->pieces[job->num_pieces++] = (Piece){
            .gate_up = &own->gate_up[expert], .down = &own->down[expert], .tokens = tokens == NULL ? NULL : tokens + first,
            .first = first, .rows = end - first, .results = results + first * own->width};
    }
}

static void cut_all(Job *job) {
    const ExpertsJob *own = job->own;
    if (own->has_shared) cut(job, own->num_experts, own->tokens, NULL, job->shared); /* the longest ones first */
    for (int64_t expert = 0; expert < own->num_experts; expert++) {
        int64_t first = job->starts[expert], rows = job->starts[expert + 1] - first;
        cut(job, expert, rows, job->tokens + first, job->results + first * own->width);
    }
}

/* Give everything its place, from `begin` on; returns the number of bytes. */
static size_t lay_out(Job *job, uintptr_t begin, int64_t threads) {
    const ExpertsJob *own = job->own;
    int64_t pairs = own->tokens * own->choices, shared_rows = own->has_shared ? own->tokens : 0, rows = pairs + shared_rows;
    int64_t inner = inner_width(own->gate_up), groups = own->num_experts + own->has_shared;
    if (own->has_shared) inner = larger(inner, inner_width(&own->gate_up[own->num_experts]));
    int64_t least = smaller(up(parts_of(shared_rows, threads * PIECES_OF_SHARED), MOST_ROWS), ENOUGH_PIECE_ROWS);
    job->piece_rows = smaller(parts_of(rows, threads * PIECES_OF_THREAD * MOST_ROWS) * MOST_ROWS, MOST_PIECE_ROWS);
    job->piece_rows = larger(job->piece_rows, least);
    job->x_stride = own->width + SPARE, job->inner_stride = inner + SPARE;
    int64_t room = 2 * strip_room(larger(own->width, inner)); /* numbers are half as wide as words */
    job->scratch_numbers = job->piece_rows * (job->x_stride + job->inner_stride) + room;
    uintptr_t at = begin;
    job->pieces = take(&at, (groups + rows / job->piece_rows) * (int64_t)sizeof *job->pieces);
    job->places = take(&at, pairs * (int64_t)sizeof *job->places);
    job->tokens = take(&at, pairs * (int64_t)sizeof *job->tokens);
    job->starts = take(&at, (own->num_experts + 2) * (int64_t)sizeof *job->starts);
    job->results = take(&at, pairs * own->width * (int64_t)sizeof *job->results);
    job->shared = take(&at, shared_rows * own->width * (int64_t)sizeof *job->shared);
    job->scratch = take(&at, threads * job->scratch_numbers * (int64_t)sizeof *job->scratch);
    return (size_t)(at - begin);
}

/* At least one token. Returns 0, or -1 without memory. */
EXPORT int32_t vl2_mix_experts(Workers *workers, const ExpertsJob *own) {
    Job job = {.own = own};
    int64_t threads = pool_threads(workers->pool);
    char *room = workers_room(workers, lay_out(&job, 0, threads));
    if (room == NULL) return -1;
    lay_out(&job, (uintptr_t)room, threads);
    sort_pairs(&job);
    cut_all(&job);
    pool_run(workers->pool, expert_piece, &job, (long)job.num_pieces);
    pool_run(workers->pool, mix_piece, &job, (long)parts_of(own->tokens, MIXED_ROWS));
    return 0;
}

#endif
