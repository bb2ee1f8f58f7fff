#include "engine.h"

#include <stdlib.h>

#include "attention.h"
#include "bytes.h"
#include "counts.h"

/* The next `count` numbers of 4 bytes; without an arena only counts. */
static void *take(Engine *engine, int64_t *used, int64_t count) {
    float *taken = engine->arena == NULL ? NULL : engine->arena + *used;
    *used += up(count, 16);
    return taken;
}

/* Whether products with a weight read rows in such a form. */
typedef int (*Reads)(const Matrix *);

static int reads_bytes(const Matrix *matrix) { return is_for_bytes(matrix); }

static int reads_pairs(const Matrix *matrix) {
    return matrix->layout == BFLOAT16_ROWS || matrix->layout == BFLOAT16_BLOCKS || matrix->layout == BFLOAT12_BLOCKS;
}

static int some_read(const Matrix *weights, int64_t count, Reads reads) {
    int is_one = 0;
    for (int64_t i = 0; i < count; i++) is_one |= weights[i].data != NULL && reads(&weights[i]);
    return is_one;
}

static int model_reads(const Model *model, Reads reads) {
    int is_one = some_read(&model->lm_head, 1, reads);
    for (int64_t idx = 0; idx < model->num_layers; idx++) {
        const Layer *layer = &model->layers[idx];
        int64_t experts = layer->router.data == NULL ? 0 : model->num_experts + model->num_joined;
        const Matrix own[] = {layer->qkv, layer->q_a, layer->q_b, layer->kv_a, layer->o_proj, layer->gate_up, layer->down};
        is_one |= some_read(own, 7, reads) || some_read(layer->expert_gate_up, experts, reads) ||
                  some_read(layer->expert_down, experts, reads);
    }
    return is_one;
}

static Operand take_operand(Engine *engine, int64_t *used, int64_t rows, int64_t stride) {
    Operand operand = {.floats = take(engine, used, rows * stride), .stride = stride};
    if (model_reads(engine->model, reads_pairs)) operand.pairs = take(engine, used, rows * stride);
    if (model_reads(engine->model, reads_bytes)) operand.bytes = take(engine, used, rows * operand_bytes(stride) / 4);
    return operand;
}

static int64_t lay_out(Engine *engine) {
    const Model *model = engine->model;
    int64_t used = 0, rows = model->max_rows, pairs = rows * num_choices(model), all = pairs + rows;
    int64_t head_width = larger(model->head_dim, larger(model->nope_dim + model->rope_dim, model->value_dim));
    int64_t queries = (model->heads + 2 * model->kv_heads) * head_width;
    int64_t widest = larger(larger(model->hidden, model->widest), larger(queries, model->q_rank));
    int64_t stride = operand_stride(widest);
    engine->x = take(engine, &used, rows * model->hidden);
    engine->normed = take(engine, &used, all * widest);
    engine->q = take(engine, &used, rows * larger(queries, model->q_rank));
    engine->latent = take(engine, &used, rows * (model->rank + model->rope_dim));
    engine->attended = take(engine, &used, rows * queries);
    engine->inner = take(engine, &used, all * 2 * model->widest);
    engine->outer = take(engine, &used, all * model->hidden);
    engine->scores = take(engine, &used, (rows + 2) * model->num_experts);
    engine->weights = take(engine, &used, pairs);
    engine->scratch = take(engine, &used, pool_threads(engine->pool) * attention_scratch(model));
    engine->operand = take_operand(engine, &used, all, stride);
    engine->shared_operand = take_operand(engine, &used, rows, stride);
    engine->ids = take(engine, &used, pairs);
    engine->pairs = take(engine, &used, pairs);
    engine->pair_rows = take(engine, &used, pairs);
    engine->expert_starts = take(engine, &used, model->num_experts + model->num_joined + 2);
    engine->rows = take(engine, &used, rows);
    int64_t most = model->num_experts + model->num_joined + 2; /* products at once */
    engine->products = (Products){.starts = take(engine, &used, 2 * most)};
    engine->products.products = take(engine, &used, most * (int64_t)(sizeof(Product) / sizeof(float)));
    return used;
}

EXPORT void vl2_engine_free(Engine *engine) {
    if (engine == NULL) return;
    if (engine->pool != NULL) pool_free(engine->pool);
    free(engine->arena);
    free(engine);
}

/* `model` and all that it points to must stay. NULL: not enough memory. */
EXPORT Engine *vl2_engine_new(const Model *model, int32_t threads) {
    Engine *engine = calloc(1, sizeof *engine);
    if (engine == NULL) return NULL;
    engine->model = model;
    engine->pool = pool_new(threads);
    if (engine->pool != NULL) engine->arena = aligned_alloc(64, (size_t)lay_out(engine) * sizeof(float));
    if (engine->arena == NULL) {
        vl2_engine_free(engine);
        return NULL;
    }
    lay_out(engine);
    for (int32_t row = 0; row < model->max_rows; row++) engine->rows[row] = row;
    return engine;
}
