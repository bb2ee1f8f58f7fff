/* What lies between a prompt's products, in one pass each: numbers are read once, computed in float32, rounded once. */
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

static void norm_row(const void *job, int64_t row, float *x) {
    const NormJob *own = job;
    int64_t width = own->width;
    int is_bfloat16 = (int)own->is_bfloat16;
    read_row(own->x, row * own->x_row, width, is_bfloat16, x);
    if (own->delta != NULL) {
        add_row(x, 1.0f, row_at(own->delta, row * own->delta_row, is_bfloat16), width, is_bfloat16);
        write_row(x, width, is_bfloat16, own->sums, row * width);
        read_row(own->sums, row * width, width, is_bfloat16, x);
    }
    if (own->bias == NULL) rms_norm(x, own->weights, (float)own->eps, width, x);
    else layer_norm(x, own->weights, own->bias, (float)own->eps, width, x);
    write_row(x, width, is_bfloat16, own->out, row * width);
}

EXPORT int32_t vl2_norm_rows(Workers *workers, const NormJob *own) {
    return run_rows(workers, own, norm_row, own->rows, own->width);
}

static void heads_row(const void *job, int64_t row, float *x) {
    const HeadsJob *own = job;
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

static void queries_row(const void *job, int64_t row, float *x) {
    const LatentJob *own = job;
    int64_t half = own->rope_dim / 2, width = own->heads * own->head_width, position = own->positions[row];
    read_row(own->x, row * own->x_row, width, (int)own->is_bfloat16, x);
    for (int64_t head = 1; head <= own->heads; head++)
        rotate_pairs(x + head * own->head_width - own->rope_dim, own->cos + position * half, own->sin + position * half,
                     own->rope_dim);
    write_row(x, width, (int)own->is_bfloat16, own->out, row * width);
}

EXPORT int32_t vl2_rotate_queries(Workers *workers, const LatentJob *own) {
    return run_rows(workers, own, queries_row, own->rows, own->heads * own->head_width);
}
