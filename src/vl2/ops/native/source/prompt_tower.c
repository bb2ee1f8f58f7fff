/* Tiles through the vision tower in one call: the same calls as one by one, without what lies between them. */
#include "amx.h"
#include "engine.h"
#include "prompt.h"
#include "prompt_calls.h"

#if HAS_AMX

typedef struct {
    const TowerJob *own;
    Workers *workers;
    int64_t patches, rows;                      /* of a tile, of all */
    int64_t patch_row, width_row, inner_row;   /* numbers from one to the next */
    uint16_t *pixels, *x, *normed, *qkv, *attended, *delta, *inner;
    int32_t failed;
} Tower;

/* ---- pixels */

static void patch_row(const Tower *tower, int64_t row) {
    const TowerJob *own = tower->own;
    int64_t size = own->patch, tile = row / tower->patches, patch = row % tower->patches;
    int64_t first = (tile * own->side + patch / own->grid * size) * own->side + patch % own->grid * size;
    uint16_t *to = tower->pixels + row * tower->patch_row;
    for (int64_t y = 0; y < size; y++) {
        const uint8_t *from = own->pixels + 3 * (first + y * own->side);
        uint16_t *red = to + y * size, *green = red + size * size, *blue = green + size * size;
        for (int64_t x = 0; x < size; x++, from += 3)
            red[x] = own->numbers[from[0]], green[x] = own->numbers[from[1]], blue[x] = own->numbers[from[2]];
    }
    memset(to + 3 * size * size, 0, (size_t)(tower->patch_row - 3 * size * size) * sizeof *to);
}

/* Patches of one row of the grid. */
static void patches_piece(void *context, long piece, int thread) {
    const Tower *tower = context;
    (void)thread;
    for (int64_t row = piece * tower->own->grid; row < (piece + 1) * tower->own->grid; row++) patch_row(tower, row);
}

/* ---- a block */

static void linear(Tower *tower, const uint16_t *x, int64_t x_row, const Matrix *weight, Gelu gelu, uint16_t *out,
                   int64_t out_row) {
    tower->failed |= call_linear(tower->workers, x, x_row, tower->rows, weight, gelu, out, out_row);
}

/* Of some rows: x + delta → x, its norm → out */
static void norm(Tower *tower, int64_t row, int64_t rows, const uint16_t *delta, const float *weights, const float *bias,
                 uint16_t *out) {
    int64_t width = tower->own->width;
    uint16_t *x = tower->x + row * width;
    NormJob job = {.x = x, .delta = delta, .weights = weights, .bias = bias, .sums = x, .out = out + row * tower->width_row,
                   .rows = rows, .width = width, .x_row = width, .delta_row = width, .out_row = tower->width_row,
                   .is_bfloat16 = 1, .eps = tower->own->eps};
    tower->failed |= vl2_norm_rows(tower->workers, &job);
}

static void attend(Tower *tower) {
    const TowerJob *own = tower->own;
    int64_t width = own->width, dim = width / own->heads, patches = tower->patches;
    for (int64_t tile = 0; tile < own->tiles; tile++) {
        const uint16_t *q = tower->qkv + tile * patches * 3 * width;
        PromptAttention job = {.q = q, .keys = q + width, .values = q + 2 * width,
                               .out = tower->attended + tile * patches * tower->width_row,
                               .rows = patches, .context = patches, .heads = own->heads, .kv_heads = own->heads, .dim = dim,
                               .value_dim = dim, .q_row = 3 * width, .q_head = dim, .key_row = 3 * width, .key_head = dim,
                               .value_row = 3 * width, .value_head = dim, .out_row = tower->width_row, .out_head = dim,
                               .scale = 1.0f / __builtin_sqrtf((float)dim)};
        tower->failed |= vl2_attend_prompt(tower->workers, &job);
    }
}

static void compute_block(Tower *tower, const TowerBlock *block, int is_first) {
    int64_t width = tower->own->width, rows = tower->rows, patches = tower->patches;
    if (is_first) /* what is added is the same for all tiles */
        for (int64_t row = 0; row < rows; row += patches)
            norm(tower, row, patches, tower->own->places, block->norm1, block->norm1_bias, tower->normed);
    else
        norm(tower, 0, rows, tower->delta, block->norm1, block->norm1_bias, tower->normed);
    linear(tower, tower->normed, tower->width_row, &block->qkv, NO_GELU, tower->qkv, 3 * width);
    attend(tower);
    linear(tower, tower->attended, tower->width_row, &block->proj, NO_GELU, tower->delta, width);
    norm(tower, 0, rows, tower->delta, block->norm2, block->norm2_bias, tower->normed);
    linear(tower, tower->normed, tower->width_row, &block->fc1, TANH_GELU, tower->inner, tower->inner_row);
    linear(tower, tower->inner, tower->inner_row, &block->fc2, NO_GELU, tower->delta, width);
}

/* ---- the call */

/* Give everything its place, from `begin` on; returns the number of bytes. */
static size_t lay_out(Tower *tower, uintptr_t begin) {
    int64_t row = 2 * tower->rows, width = tower->own->width;
    uintptr_t at = begin;
    tower->pixels = take(&at, row * tower->patch_row);
    tower->x = take(&at, row * width);
    tower->normed = take(&at, row * tower->width_row);
    tower->qkv = take(&at, row * 3 * width);
    tower->attended = take(&at, row * tower->width_row);
    tower->delta = take(&at, row * width);
    tower->inner = take(&at, row * tower->inner_row);
    return (size_t)(at - begin);
}

/* What no call writes, but products read. */
static void fill_up(uint16_t *rows, int64_t count, int64_t width, int64_t stride) {
    for (int64_t row = 0; row < count; row++) memset(rows + row * stride + width, 0, (size_t)(stride - width) * sizeof *rows);
}

/* At least one block. Returns 0, or -1 without memory. */
EXPORT int32_t vl2_encode_tiles(Workers *workers, const TowerJob *own) {
    Tower tower = {.own = own, .workers = workers, .patches = own->grid * own->grid};
    tower.rows = own->tiles * tower.patches;
    tower.patch_row = up(3 * own->patch * own->patch, TILE_NUMBERS) + SPARE;
    tower.width_row = own->width + SPARE, tower.inner_row = up(own->inner, TILE_NUMBERS) + SPARE;
    void *room = room_of(&workers->of_layers, lay_out(&tower, 0));
    if (room == NULL) return -1;
    lay_out(&tower, (uintptr_t)room);
    pool_run(workers->pool, patches_piece, &tower, (long)(own->tiles * own->grid));
    fill_up(tower.normed, tower.rows, own->width, tower.width_row);
    fill_up(tower.attended, tower.rows, own->width, tower.width_row);
    fill_up(tower.inner, tower.rows, own->inner, tower.inner_row);
    linear(&tower, tower.pixels, tower.patch_row, &own->embed, NO_GELU, tower.x, own->width);
    for (int64_t block = 0; block < own->num_blocks && !tower.failed; block++)
        compute_block(&tower, &own->blocks[block], block == 0);
    NormJob last = {.x = tower.x, .delta = tower.delta, .weights = own->norm, .bias = own->norm_bias, .sums = tower.x,
                    .out = own->out, .rows = tower.rows, .width = own->width, .x_row = own->width, .delta_row = own->width,
                    .out_row = own->width, .is_bfloat16 = 1, .eps = own->eps};
    return tower.failed | vl2_norm_rows(workers, &last);
}

#endif
