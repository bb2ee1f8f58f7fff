/* A prompt through all layers of a decoder in one call: the same calls as one by one, without what lies between them. */
#include "amx.h"
#include "engine.h"
#include "prompt.h"
#include "prompt_calls.h"

#if HAS_AMX

enum { GATHERED_ROWS = 64 };

/* What a layer works with; all are bfloat16 [rows, …] but for the router's. Rows of normed and attended are SPARE longer. */
typedef struct {
    const DecoderJob *own;
    const Model *model;
    Workers *workers;
    uint16_t *x, *normed, *wide, *q, *attended, *delta; /* `wide`: queries, keys and values as they are multiplied; MLA's q_a */
    uint16_t *latent, *gathered, *expanded;             /* MLA: rows of the cache; of a sequence; its heads' keys and values */
    uint16_t *last_x, *last_normed, *last_q;
    int64_t *ids, *last_positions;
    float *weights;
    int64_t normed_row, attended_row; /* numbers from one to the next */
    int64_t rows;           /* of x, normed, q, … now: all, or in the last layer those that are wanted */
    const Chunk *chunks;    /* whose rows they are */
    int64_t num_chunks;
    int32_t failed;
} Prompt;

static void linear(Prompt *prompt, const uint16_t *x, int64_t x_row, int64_t rows, const Matrix *weight, uint16_t *out) {
    prompt->failed |= call_linear(prompt->workers, x, x_row, rows, weight, NO_GELU, out, weight->out_width);
}

/* x and what was added to it last → its norm; `delta` may be NULL */
static void norm(Prompt *prompt, uint16_t *x, const uint16_t *delta, const float *weights, double eps, int64_t width,
                 int64_t rows, uint16_t *out, int64_t out_row) {
    NormJob job = {.x = x, .delta = delta, .weights = weights, .sums = x, .out = out, .rows = rows, .width = width,
                   .x_row = width, .delta_row = width, .out_row = out_row, .is_bfloat16 = 1, .eps = eps};
    prompt->failed |= vl2_norm_rows(prompt->workers, &job);
}

static void take_rows(const Prompt *prompt, const uint16_t *from, int64_t from_row, int64_t width, uint16_t *to) {
    for (int64_t row = 0; row < prompt->own->num_last; row++)
        memcpy(to + row * width, from + prompt->own->last_rows[row] * from_row, (size_t)width * sizeof *to);
}

/* From here on the last layer's rows are those that are wanted; x and queries, `q_width` wide, are picked out. */
static void keep_last(Prompt *prompt, int64_t q_width) {
    const DecoderJob *own = prompt->own;
    take_rows(prompt, prompt->x, prompt->model->hidden, prompt->model->hidden, prompt->last_x);
    take_rows(prompt, prompt->q, q_width, q_width, prompt->last_q);
    for (int64_t row = 0; row < own->num_last; row++) prompt->last_positions[row] = own->positions[own->last_rows[row]];
    prompt->x = prompt->last_x, prompt->q = prompt->last_q;
    prompt->rows = own->num_last, prompt->chunks = own->last_chunks, prompt->num_chunks = own->num_last_chunks;
}

/* ---- attention */

static void attend_heads(Prompt *prompt, const Layer *layer, int is_last) {
    const Model *model = prompt->model;
    int64_t dim = model->head_dim, q_width = model->heads * dim, kv_width = model->kv_heads * dim;
    linear(prompt, prompt->normed, prompt->normed_row, prompt->rows, &layer->qkv, prompt->wide);
    HeadsJob heads = {.qkv = prompt->wide, .q = prompt->q, .pool = layer->pool, .cos = model->cos, .sin = model->sin,
                      .positions = prompt->own->positions, .slots = prompt->own->slots, .rows = prompt->rows,
                      .qkv_row = layer->qkv.out_width, .heads = model->heads, .kv_heads = model->kv_heads, .dim = dim,
                      .num_slots = model->num_slots, .is_bfloat16 = 1};
    prompt->failed |= vl2_write_heads(prompt->workers, &heads);
    if (is_last) keep_last(prompt, q_width);
    for (int64_t idx = 0; idx < prompt->num_chunks; idx++) {
        const Chunk *chunk = &prompt->chunks[idx];
        const uint16_t *keys = layer->pool;
        PromptAttention job = {.q = prompt->q + chunk->start * q_width, .keys = keys,
                               .values = keys + model->num_slots * kv_width,
                               .out = prompt->attended + chunk->start * prompt->attended_row, .pages = chunk->pages,
                               .page_size = model->page_size, .rows = chunk->rows, .context = chunk->context,
                               .heads = model->heads, .kv_heads = model->kv_heads, .dim = dim, .value_dim = dim,
                               .q_row = q_width, .q_head = dim, .key_row = kv_width, .key_head = dim, .value_row = kv_width,
                               .value_head = dim, .out_row = prompt->attended_row, .out_head = dim,
                               .scale = model->scale, .is_causal = 1};
        prompt->failed |= vl2_attend_prompt(prompt->workers, &job);
    }
}

typedef struct {
    const uint16_t *pool;
    const Chunk *chunk;
    int64_t page_size, width;
    uint16_t *out;
} Gathering;

static void gather_piece(void *context, long piece, int thread) {
    const Gathering *own = context;
    (void)thread;
    int64_t begin = piece * GATHERED_ROWS, end = smaller(begin + GATHERED_ROWS, own->chunk->context);
    for (int64_t at = begin; at < end; at++) {
        int64_t slot = own->chunk->pages[at / own->page_size] * own->page_size + at % own->page_size;
        memcpy(own->out + at * own->width, own->pool + slot * own->width, (size_t)own->width * sizeof *own->out);
    }
}

/* Keys and values of every head are made of the latent rows; what is rotated of a key is the same for all heads. */
static void attend_expanded(Prompt *prompt, const Layer *layer, const Chunk *chunk) {
    const Model *model = prompt->model;
    int64_t width = model->rank + model->rope_dim, dim = model->nope_dim + model->rope_dim, q_width = model->heads * dim;
    int64_t head = model->nope_dim + model->value_dim, row = model->heads * head, out_row = prompt->attended_row;
    Gathering gathering = {layer->pool, chunk, model->page_size, width, prompt->gathered};
    pool_run(prompt->workers->pool, gather_piece, &gathering, (long)parts_of(chunk->context, GATHERED_ROWS));
    linear(prompt, prompt->gathered, width, chunk->context, &layer->kv_expand, prompt->expanded);
    PromptAttention job = {.q = prompt->q + chunk->start * q_width, .keys = prompt->expanded,
                           .values = prompt->expanded + model->nope_dim, .out = prompt->attended + chunk->start * out_row,
                           .rows = chunk->rows, .context = chunk->context, .heads = model->heads, .kv_heads = model->heads,
                           .dim = dim, .value_dim = model->value_dim, .q_row = q_width, .q_head = dim, .key_row = row,
                           .key_head = head, .value_row = row, .value_head = head, .out_row = out_row,
                           .out_head = model->value_dim, .tails = prompt->gathered + model->rank, .tail_row = width,
                           .tail_dim = model->rope_dim, .scale = model->scale, .is_causal = 1};
    prompt->failed |= vl2_attend_prompt(prompt->workers, &job);
}

static void attend_latent(Prompt *prompt, const Layer *layer, int is_last) {
    const Model *model = prompt->model;
    int64_t dim = model->nope_dim + model->rope_dim, q_width = model->heads * dim;
    LatentJob job = {.x = prompt->latent, .weights = layer->kv_norm, .out = layer->pool, .cos = model->cos, .sin = model->sin,
                     .positions = prompt->own->positions, .slots = prompt->own->slots, .rows = prompt->rows,
                     .x_row = model->rank + model->rope_dim, .rank = model->rank, .rope_dim = model->rope_dim,
                     .heads = model->heads, .head_width = dim, .is_bfloat16 = 1, .eps = model->inner_eps};
    linear(prompt, prompt->normed, prompt->normed_row, prompt->rows, &layer->kv_a, prompt->latent);
    prompt->failed |= vl2_write_latent(prompt->workers, &job);
    if (is_last) {
        take_rows(prompt, prompt->normed, prompt->normed_row, model->hidden, prompt->last_normed);
        prompt->normed = prompt->last_normed, prompt->normed_row = model->hidden;
        keep_last(prompt, 0);
        job.positions = prompt->last_positions;
    }
    if (layer->q_a.data == NULL) {
        linear(prompt, prompt->normed, prompt->normed_row, prompt->rows, &layer->q_b, prompt->q);
    } else {
        linear(prompt, prompt->normed, prompt->normed_row, prompt->rows, &layer->q_a, prompt->wide);
        norm(prompt, prompt->wide, NULL, layer->q_norm, model->inner_eps, model->q_rank, prompt->rows, prompt->wide, model->q_rank);
        linear(prompt, prompt->wide, model->q_rank, prompt->rows, &layer->q_b, prompt->q);
    }
    job.x = job.out = prompt->q, job.rows = prompt->rows, job.x_row = q_width;
    prompt->failed |= vl2_rotate_queries(prompt->workers, &job);
    for (int64_t idx = 0; idx < prompt->num_chunks; idx++) attend_expanded(prompt, layer, &prompt->chunks[idx]);
}

/* ---- feed-forward */

static void mix(Prompt *prompt, const Layer *layer) {
    const Model *model = prompt->model;
    int has_router = layer->router.data != NULL;
    ExpertsJob job = {.x = prompt->normed, .ids = prompt->ids, .weights = prompt->weights, .out = prompt->delta,
                      .tokens = prompt->rows, .width = model->hidden, .x_row = prompt->normed_row,
                      .gate_up = &layer->gate_up, .down = &layer->down,
                      .has_shared = layer->gate_up.data != NULL}; /* a dense layer is like shared experts alone */
    if (has_router) {
        RouterJob router = {.x = prompt->normed, .router = layer->router, .bias = layer->router_bias, .ids = prompt->ids,
                            .weights = prompt->weights, .choice = model, .rows = prompt->rows, .x_row = prompt->normed_row,
                            .is_bfloat16 = 1};
        prompt->failed |= vl2_route_rows(prompt->workers, &router);
        job.gate_up = layer->expert_gate_up, job.down = layer->expert_down;
        job.num_experts = model->num_experts, job.choices = model->num_active;
    }
    prompt->failed |= vl2_mix_experts(prompt->workers, &job);
}

static void compute_layer(Prompt *prompt, const Layer *layer, int is_first, int is_last) {
    const Model *model = prompt->model;
    int64_t hidden = model->hidden;
    norm(prompt, prompt->x, is_first ? NULL : prompt->delta, layer->attention_norm, model->eps, hidden, prompt->rows,
         prompt->normed, prompt->normed_row);
    if (model->rank == 0) attend_heads(prompt, layer, is_last);
    else attend_latent(prompt, layer, is_last);
    if (prompt->rows == 0) return;
    linear(prompt, prompt->attended, prompt->attended_row, prompt->rows, &layer->o_proj, prompt->delta);
    norm(prompt, prompt->x, prompt->delta, layer->mlp_norm, model->eps, hidden, prompt->rows, prompt->normed, prompt->normed_row);
    mix(prompt, layer);
}

/* ---- the call */

INLINE int64_t longest_context(const DecoderJob *own) {
    int64_t longest = 0;
    for (int64_t idx = 0; idx < own->num_chunks; idx++) longest = larger(longest, own->chunks[idx].context);
    return longest;
}

/* Give everything its place, from `begin` on; returns the number of bytes. */
static size_t lay_out(Prompt *prompt, uintptr_t begin) {
    const DecoderJob *own = prompt->own;
    const Model *model = own->model;
    int64_t is_latent = model->rank > 0, head = is_latent ? model->nope_dim + model->rope_dim : model->head_dim;
    int64_t q_width = model->heads * head, value_width = model->heads * (is_latent ? model->value_dim : head);
    int64_t wide = is_latent ? model->q_rank : q_width + 2 * model->kv_heads * head, row = own->rows * 2;
    int64_t latent = model->rank + model->rope_dim, context = is_latent ? longest_context(own) * 2 : 0;
    uintptr_t at = begin;
    prompt->normed_row = model->hidden + SPARE, prompt->attended_row = value_width + SPARE;
    prompt->normed = take(&at, row * prompt->normed_row);
    prompt->wide = take(&at, row * wide);
    prompt->q = take(&at, row * q_width);
    prompt->attended = take(&at, row * prompt->attended_row);
    prompt->delta = take(&at, row * model->hidden);
    prompt->latent = take(&at, is_latent ? row * latent : 0);
    prompt->gathered = take(&at, context * latent);
    prompt->expanded = take(&at, context * model->heads * (model->nope_dim + model->value_dim));
    prompt->last_x = take(&at, own->num_last * 2 * model->hidden);
    prompt->last_normed = take(&at, own->num_last * 2 * model->hidden);
    prompt->last_q = take(&at, own->num_last * 2 * q_width);
    prompt->last_positions = take(&at, own->num_last * (int64_t)sizeof(int64_t));
    prompt->ids = take(&at, own->rows * model->num_active * (int64_t)sizeof(int64_t));
    prompt->weights = take(&at, own->rows * model->num_active * (int64_t)sizeof(float));
    return (size_t)(at - begin);
}

/* Returns 0, or -1 without memory. */
EXPORT int32_t vl2_decode_prompt(Workers *workers, const DecoderJob *own) {
    const Model *model = own->model;
    Prompt prompt = {.own = own, .model = model, .workers = workers, .x = own->x, .rows = own->rows, .chunks = own->chunks,
                     .num_chunks = own->num_chunks};
    void *room = room_of(&workers->of_layers, lay_out(&prompt, 0));
    if (room == NULL) return -1;
    lay_out(&prompt, (uintptr_t)room);
    for (int64_t layer = 0; layer < model->num_layers && !prompt.failed; layer++)
        compute_layer(&prompt, &model->layers[layer], layer == 0, layer == model->num_layers - 1);
    norm(&prompt, prompt.x, prompt.delta, model->final_norm, model->eps, model->hidden, prompt.rows, own->out, model->hidden);
    return prompt.failed;
}

#endif
