/* A whole decoding step: embeddings, all layers, logits. The caller's thread does what is short, loops are shared. */
#include "attention.h"
#include "engine.h"
#include "pointwise.h"
#include "router.h"

/* ---- shared loops */

static void products_piece(void *context, long idx, int thread) {
    const Products *all = context;
    int64_t low = 0, high = all->count;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (all->starts[middle] <= idx) low = middle;
        else high = middle;
    }
    (void)thread;
    product_piece(&all->products[low], idx - all->starts[low]);
}

static void add_product(Engine *engine, Product product) {
    Products *all = &engine->products;
    all->products[all->count] = product;
    all->starts[all->count++] = all->pieces;
    all->pieces += product_pieces(&product);
}

static void run_products(Engine *engine) {
    pool_run(engine->pool, products_piece, &engine->products, (long)engine->products.pieces);
    engine->products.count = engine->products.pieces = 0;
}

/* All rows of the step times one matrix; `out` is packed. */
static void add_dense(Engine *engine, const Matrix *weight, const Operand *operand, int64_t rows, float *out) {
    add_product(engine, (Product){weight, operand, out, weight->out_width, engine->rows, engine->rows, rows});
}

typedef struct {
    Engine *engine;
    const Layer *layer;
    const Step *step;
} Attending;

static void attention_piece(void *context, long piece, int thread) {
    const Attending *own = context;
    Engine *engine = own->engine;
    float *scratch = engine->scratch + thread * attention_scratch(engine->model);
    attend(engine->model, own->layer, own->step, engine->q, engine->attended, scratch, piece);
}

/* ---- a layer */

static void store_rows(Operand *operand, const float *from, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++) operand_store(operand, row, from + row * width, width);
}

static void norm_rows(Engine *engine, const float *from, const float *weight, float eps, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++)
        rms_norm(from + row * width, weight, eps, width, engine->normed + row * width);
    store_rows(&engine->operand, engine->normed, rows, width);
}

static void add_to_residual(Engine *engine, const float *delta, int64_t rows) {
    for (int64_t i = 0; i < rows * engine->model->hidden; i++) engine->x[i] += delta[i];
}

static void attention(Engine *engine, const Layer *layer, const Step *step) {
    const Model *model = engine->model;
    norm_rows(engine, engine->x, layer->attention_norm, model->eps, step->rows, model->hidden);
    if (model->rank == 0) {
        add_dense(engine, &layer->qkv, &engine->operand, step->rows, engine->q);
        run_products(engine);
        write_heads(model, layer, step, engine->q);
    } else {
        const Matrix *first = layer->q_a.data == NULL ? &layer->q_b : &layer->q_a;
        add_dense(engine, first, &engine->operand, step->rows, engine->q);
        add_dense(engine, &layer->kv_a, &engine->operand, step->rows, engine->latent);
        run_products(engine);
        if (layer->q_a.data != NULL) {
            norm_rows(engine, engine->q, layer->q_norm, model->inner_eps, step->rows, model->q_rank);
            add_dense(engine, &layer->q_b, &engine->operand, step->rows, engine->q);
            run_products(engine);
        }
        write_latent(model, layer, step, engine->q, engine->latent);
    }
    pool_run(engine->pool, attention_piece, &(Attending){engine, layer, step}, attention_pieces(model, step));
    store_rows(&engine->operand, engine->attended, step->rows, layer->o_proj.in_width);
    add_dense(engine, &layer->o_proj, &engine->operand, step->rows, engine->outer);
    run_products(engine);
    add_to_residual(engine, engine->outer, step->rows);
}

/* Rows of gates and ups become the operand of what comes next. */
static void activate(Engine *engine, Operand *operand, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++)
        swiglu(engine->inner + row * 2 * width, width, engine->normed + row * width);
    store_rows(operand, engine->normed, rows, width);
}

static void dense_layer(Engine *engine, const Layer *layer, int64_t rows) {
    add_dense(engine, &layer->gate_up, &engine->operand, rows, engine->inner);
    run_products(engine);
    activate(engine, &engine->operand, rows, layer->down.in_width);
    add_dense(engine, &layer->down, &engine->operand, rows, engine->outer);
    run_products(engine);
    add_to_residual(engine, engine->outer, rows);
}

/* Pairs by expert, those of one behind one another. */
static void group_pairs(Engine *engine, int64_t rows) {
    int64_t choices = num_choices(engine->model), num_experts = engine->model->num_experts + engine->model->num_joined;
    int32_t *starts = engine->expert_starts;
    memset(starts, 0, (size_t)(num_experts + 2) * sizeof(int32_t));
    for (int64_t pair = 0; pair < rows * choices; pair++) starts[engine->ids[pair] + 2]++;
    for (int64_t expert = 0; expert < num_experts; expert++) starts[expert + 2] += starts[expert + 1];
    for (int64_t pair = 0; pair < rows * choices; pair++) {
        int32_t at = starts[engine->ids[pair] + 1]++;
        engine->pairs[at] = (int32_t)pair;
        engine->pair_rows[at] = (int32_t)(pair / choices);
    }
}

/* A product for each expert that has pairs. */
static void add_experts(Engine *engine, const Matrix *experts, const int32_t *in_rows, float *out) {
    for (int64_t expert = 0; expert < engine->model->num_experts + engine->model->num_joined; expert++) {
        int32_t begin = engine->expert_starts[expert], count = engine->expert_starts[expert + 1] - begin;
        const Matrix *weight = &experts[expert];
        if (count > 0)
            add_product(engine, (Product){weight, &engine->operand, out, weight->out_width, in_rows + begin,
                                          engine->pairs + begin, count});
    }
}

static void choose(Engine *engine, const Layer *layer, int64_t rows) {
    const Model *model = engine->model;
    float *spare = engine->scores + model->max_rows * model->num_experts;
    for (int64_t row = 0; row < rows; row++) {
        int32_t *ids = engine->ids + row * num_choices(model);
        float *weights = engine->weights + row * num_choices(model);
        choose_experts(model, layer->router_bias, engine->scores + row * model->num_experts, spare, ids, weights);
        for (int64_t i = 0; i < model->num_joined; i++) {
            ids[model->num_active + i] = (int32_t)(model->num_experts + i);
            weights[model->num_active + i] = 1.0f;
        }
    }
    group_pairs(engine, rows);
}

static void add_weighted(Engine *engine, int64_t rows) {
    int64_t hidden = engine->model->hidden, choices = num_choices(engine->model);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t choice = 0; choice < choices; choice++) {
            float weight = engine->weights[row * choices + choice], *x = engine->x + row * hidden;
            const float *result = engine->outer + (row * choices + choice) * hidden;
            for (int64_t i = 0; i < hidden; i++) x[i] += weight * result[i];
        }
}

static void moe_layer(Engine *engine, const Layer *layer, int64_t rows) {
    const Model *model = engine->model;
    int64_t num_pairs = rows * num_choices(model), has_shared = layer->gate_up.data != NULL;
    float *shared_out = engine->outer + num_pairs * model->hidden;
    add_dense(engine, &layer->router, &engine->operand, rows, engine->scores);
    if (has_shared) add_dense(engine, &layer->gate_up, &engine->operand, rows, engine->inner);
    run_products(engine);
    choose(engine, layer, rows);
    if (has_shared) activate(engine, &engine->shared_operand, rows, layer->down.in_width);
    add_experts(engine, layer->expert_gate_up, engine->pair_rows, engine->inner);
    run_products(engine);
    activate(engine, &engine->operand, num_pairs, layer->expert_down[0].in_width);
    add_experts(engine, layer->expert_down, engine->pairs, engine->outer);
    if (has_shared) add_dense(engine, &layer->down, &engine->shared_operand, rows, shared_out);
    run_products(engine);
    add_weighted(engine, rows);
    if (has_shared) add_to_residual(engine, shared_out, rows);
}

/* ---- the step */

EXPORT void vl2_step(Engine *engine, const Step *step) {
    const Model *model = engine->model;
    int64_t hidden = model->hidden;
    for (int64_t row = 0; row < step->rows; row++)
        read_row(model->embeddings, step->token_ids[row] * hidden, hidden, model->is_bfloat16, engine->x + row * hidden);
    for (int64_t idx = 0; idx < model->num_layers; idx++) {
        const Layer *layer = &model->layers[idx];
        attention(engine, layer, step);
        norm_rows(engine, engine->x, layer->mlp_norm, model->eps, step->rows, hidden);
        if (layer->router.data == NULL)
            dense_layer(engine, layer, step->rows);
        else
            moe_layer(engine, layer, step->rows);
    }
    norm_rows(engine, engine->x, model->final_norm, model->eps, step->rows, hidden);
    add_dense(engine, &model->lm_head, &engine->operand, step->rows, step->logits);
    run_products(engine);
}
