/* Which experts a prompt's rows take: scores of some rows at once, then each row's choice. */
#include "counts.h"
#include "engine.h"
#include "pointwise.h"
#include "prompt.h"
#include "router.h"

enum { PIECE_ROWS = 16 };

typedef struct {
    const RouterJob *own;
    float *room;
    int64_t stride, room_floats; /* of a row; of a thread */
} Job;

static void route_piece(void *context, long piece, int thread) {
    const Job *job = context;
    const RouterJob *own = job->own;
    const Model *choice = own->choice;
    int64_t begin = piece * PIECE_ROWS, count = smaller(own->rows - begin, PIECE_ROWS);
    int64_t width = own->router.in_width, experts = choice->num_experts;
    float *x = job->room + thread * job->room_floats, *scores = x + PIECE_ROWS * job->stride, *spare = scores + PIECE_ROWS * experts;
    int32_t *chosen = (int32_t *)(spare + 2 * experts), numbers[PIECE_ROWS];
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
    job.room_floats = up(PIECE_ROWS * job.stride + (PIECE_ROWS + 3) * own->choice->num_experts, 16);
    job.room = workers_room(workers, (size_t)(pool_threads(workers->pool) * job.room_floats) * sizeof(float));
    if (job.room == NULL) return -1;
    pool_run(workers->pool, route_piece, &job, (long)parts_of(own->rows, PIECE_ROWS));
    return 0;
}
