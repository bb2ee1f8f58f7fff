/* Which experts a prompt's rows take: scores of some rows at once, then each row's choice. */
#include "engine.h"
#include "pointwise.h"
#include "prompt.h"
#include "router.h"

enum { BLOCK = 16 };

typedef struct {
    const RouterJob *own;
    float *room;
    int64_t stride, room_floats, first; /* of a row; of a thread; the loop's first block */
} Job;

static void route_block(void *context, long piece, int thread) {
    const Job *job = context;
    const RouterJob *own = job->own;
    const Model *choice = own->choice;
    int64_t begin = (job->first + piece) * BLOCK, count = own->rows - begin < BLOCK ? own->rows - begin : BLOCK;
    int64_t width = own->router.in_width, experts = choice->num_experts;
    float *x = job->room + thread * job->room_floats, *scores = x + BLOCK * job->stride, *spare = scores + BLOCK * experts;
    int32_t *chosen = (int32_t *)(spare + 2 * experts), numbers[BLOCK];
    for (int64_t row = 0; row < count; row++) {
        read_row(own->x, (begin + row) * own->x_row, width, (int)own->is_bfloat16, x + row * job->stride);
        numbers[row] = (int32_t)row;
    }
    Operand operand = {.floats = x, .stride = job->stride};
    Product product = {.weight = &own->router, .operand = &operand, .out = scores, .out_stride = experts,
                       .in_rows = numbers, .out_rows = numbers, .num_rows = count};
    for (int64_t part = 0; part < product_pieces(&product); part++) product_piece(&product, part);
    for (int64_t row = 0; row < count; row++) {
        int64_t at = (begin + row) * choice->num_active;
        choose_experts(choice, own->bias, scores + row * experts, spare, chosen, own->weights + at);
        for (int64_t i = 0; i < choice->num_active; i++) own->ids[at + i] = chosen[i];
    }
}

/* Returns 0, or -1 without memory. */
EXPORT int32_t vl2_route_rows(Workers *workers, const RouterJob *own) {
    Job job = {.own = own, .stride = operand_stride(own->router.in_width)};
    job.room_floats = (BLOCK * job.stride + (BLOCK + 3) * own->choice->num_experts + 15) / 16 * 16;
    job.room = workers_room(workers, (size_t)(pool_threads(workers->pool) * job.room_floats) * sizeof(float));
    if (job.room == NULL) return -1;
    int64_t blocks = (own->rows + BLOCK - 1) / BLOCK;
    for (; job.first < blocks; job.first += MOST_PIECES)
        pool_run(workers->pool, route_block, &job, (long)(blocks - job.first < MOST_PIECES ? blocks - job.first : MOST_PIECES));
    return 0;
}
