/* Patches become tokens in one call. */
#include "amx.h"
#include "engine.h"
#include "prompt.h"
#include "prompt_calls.h"

#if HAS_AMX

typedef struct {
    const ProjectorJob *own;
    int64_t side, merged; /* of the grid of tokens; numbers of a row */
    uint16_t *rows;       /* [tiles · side², merged] */
} Merging;

/* One token's row: patches side by side, number by number, as torch's unfold has them; those beyond the grid are zeros. */
static void merge_row(const Merging *merging, int64_t tile, int64_t y, int64_t x) {
    const ProjectorJob *own = merging->own;
    int64_t ratio = own->ratio, all = ratio * ratio;
    uint16_t *to = merging->rows + ((tile * merging->side + y) * merging->side + x) * merging->merged;
    for (int64_t part = 0; part < all; part++) {
        int64_t row = y * ratio + part / ratio, column = x * ratio + part % ratio;
        const uint16_t *from = own->features + ((tile * own->grid + row) * own->grid + column) * own->width;
        if (row < own->grid && column < own->grid)
            for (int64_t i = 0; i < own->width; i++) to[i * all + part] = from[i];
        else
            for (int64_t i = 0; i < own->width; i++) to[i * all + part] = 0;
    }
}

static void merge_piece(void *context, long piece, int thread) {
    const Merging *merging = context;
    (void)thread;
    for (int64_t x = 0; x < merging->side; x++) merge_row(merging, piece / merging->side, piece % merging->side, x);
}

/* Returns 0, or -1 without memory. */
EXPORT int32_t vl2_project_tiles(Workers *workers, const ProjectorJob *own) {
    Merging merging = {.own = own, .side = parts_of(own->grid, own->ratio), .merged = own->width * own->ratio * own->ratio};
    int64_t rows = own->tiles * merging.side * merging.side, widest = 0;
    for (int64_t idx = 0; idx < own->num_linears; idx++) widest = larger(widest, own->linears[idx].out_width);
    uint16_t *room = room_of(&workers->of_layers, 2 * (size_t)(rows * (merging.merged + 2 * widest)));
    if (room == NULL) return -1;
    merging.rows = room;
    pool_run(workers->pool, merge_piece, &merging, (long)(own->tiles * merging.side));
    const uint16_t *x = room;
    int32_t failed = 0;
    for (int64_t idx = 0; idx < own->num_linears; idx++) {
        const Matrix *weight = &own->linears[idx];
        int is_last = idx == own->num_linears - 1;
        uint16_t *out = is_last ? own->out : room + rows * (merging.merged + idx % 2 * widest);
        failed |= call_linear(workers, x, weight->in_width, rows, weight, is_last ? NO_GELU : ERF_GELU, out, weight->out_width);
        x = out;
    }
    return failed;
}

#endif
