#include "attention.h"

#include "pointwise.h"

/* The cache's row of a position: page · page size + offset. */
INLINE int64_t slot_of(const Model *model, const Step *step, int64_t row, int64_t position) {
    int64_t page = step->tables[row * step->table_width + position / model->page_size];
    return page * model->page_size + position % model->page_size;
}

INLINE void add_scaled(float *x, float factor, const void *values, int64_t first, int64_t width, int is_bfloat16) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES)
        store_floats(x + i, load_floats(x + i) + factor * values_at(values, first + i, is_bfloat16));
    for (; i < width; i++) x[i] += factor * value_at(values, first + i, is_bfloat16);
}

void write_heads(const Model *model, const Layer *layer, const Step *step, float *qkv) {
    int64_t dim = model->head_dim, kv_width = model->kv_heads * dim, stride = model->heads * dim + 2 * kv_width;
    for (int64_t row = 0; row < step->rows; row++) {
        int64_t position = step->positions[row], at = slot_of(model, step, row, position) * kv_width;
        const float *cos = model->cos + position * (dim / 2), *sin = model->sin + position * (dim / 2);
        float *own = qkv + row * stride, *keys = own + model->heads * dim;
        for (int64_t head = 0; head < model->heads + model->kv_heads; head++)
            rotate_halves(own + head * dim, cos, sin, dim);
        write_row(keys, kv_width, model->is_bfloat16, layer->pool, at);
        write_row(keys + kv_width, kv_width, model->is_bfloat16, layer->pool, model->num_slots * kv_width + at);
    }
}

void write_latent(const Model *model, const Layer *layer, const Step *step, float *q, float *latent) {
    int64_t rank = model->rank, rotated = model->rope_dim, stride = rank + rotated;
    int64_t head_width = model->nope_dim + rotated;
    for (int64_t row = 0; row < step->rows; row++) {
        int64_t position = step->positions[row];
        const float *cos = model->cos + position * (rotated / 2), *sin = model->sin + position * (rotated / 2);
        float *own = latent + row * stride, *queries = q + row * model->heads * head_width;
        rms_norm(own, layer->kv_norm, model->inner_eps, rank, own);
        rotate_pairs(own + rank, cos, sin, rotated);
        write_row(own, stride, model->is_bfloat16, layer->pool, slot_of(model, step, row, position) * stride);
        for (int64_t head = 0; head < model->heads; head++)
            rotate_pairs(queries + head * head_width + model->nope_dim, cos, sin, rotated);
    }
}

int64_t attention_scratch(const Model *model) {
    int64_t group = model->rank ? 1 : model->heads / model->kv_heads;
    return (group * model->max_context + 2 * (model->rank + model->rope_dim) + 15) / 16 * 16;
}

int64_t attention_pieces(const Model *model, const Step *step) {
    return step->rows * (model->rank ? model->heads : model->kv_heads);
}

INLINE void attend_heads(const Model *model, const Layer *layer, const Step *step, const float *q, float *out,
                         float *scores, int64_t piece, int is_bfloat16) {
    int64_t dim = model->head_dim, group = model->heads / model->kv_heads, kv_width = model->kv_heads * dim;
    int64_t row = piece / model->kv_heads, kv_head = piece % model->kv_heads;
    int64_t context = step->positions[row] + 1, values = model->num_slots * kv_width;
    const float *queries = q + row * (model->heads * dim + 2 * kv_width) + kv_head * group * dim;
    float *results = out + (row * model->heads + kv_head * group) * dim;
    for (int64_t i = 0; i < context; i++) {
        int64_t at = slot_of(model, step, row, i) * kv_width + kv_head * dim;
        for (int64_t head = 0; head < group; head++)
            scores[head * context + i] =
                dot_values(queries + head * dim, layer->pool, at, dim, is_bfloat16) * model->scale;
    }
    for (int64_t head = 0; head < group; head++) softmax(scores + head * context, context);
    memset(results, 0, (size_t)(group * dim) * sizeof(float));
    for (int64_t i = 0; i < context; i++) {
        int64_t at = values + slot_of(model, step, row, i) * kv_width + kv_head * dim;
        for (int64_t head = 0; head < group; head++)
            add_scaled(results + head * dim, scores[head * context + i], layer->pool, at, dim, is_bfloat16);
    }
}

/* Absorbed: the query is taken into the latent space by the head's keys' rows of kv_b, and the result out of it by its
 * values' rows; in between the head reads the latent rows themselves, of which the first `rank` are the values too. */
INLINE void attend_latent(const Model *model, const Layer *layer, const Step *step, const float *q, float *out,
                          float *scratch, int64_t piece, int is_bfloat16, int is_kv_b_bfloat16) {
    int64_t rank = model->rank, stride = rank + model->rope_dim, nope = model->nope_dim, value = model->value_dim;
    int64_t head = piece / step->rows, row = piece % step->rows, context = step->positions[row] + 1;
    const float *query = q + (row * model->heads + head) * (nope + model->rope_dim);
    const void *kv_b = layer->kv_b.data;
    int64_t keys = head * (nope + value) * rank, values = keys + nope * rank;
    float *absorbed = scratch, *latent = absorbed + stride, *scores = latent + stride;
    memset(absorbed, 0, (size_t)(2 * stride) * sizeof(float));
    for (int64_t i = 0; i < nope; i++) add_scaled(absorbed, query[i], kv_b, keys + i * rank, rank, is_kv_b_bfloat16);
    memcpy(absorbed + rank, query + nope, (size_t)model->rope_dim * sizeof(float));
    for (int64_t i = 0; i < context; i++)
        scores[i] = dot_values(absorbed, layer->pool, slot_of(model, step, row, i) * stride, stride, is_bfloat16) *
                    model->scale;
    softmax(scores, context);
    for (int64_t i = 0; i < context; i++)
        add_scaled(latent, scores[i], layer->pool, slot_of(model, step, row, i) * stride, rank, is_bfloat16);
    float *results = out + (row * model->heads + head) * value;
    for (int64_t i = 0; i < value; i++) results[i] = dot_values(latent, kv_b, values + i * rank, rank, is_kv_b_bfloat16);
}

void attend(const Model *model, const Layer *layer, const Step *step, const float *q, float *out, float *scratch,
            int64_t piece) {
    if (model->rank == 0) {
        if (model->is_bfloat16)
            attend_heads(model, layer, step, q, out, scratch, piece, 1);
        else
            attend_heads(model, layer, step, q, out, scratch, piece, 0);
    } else if (!model->is_bfloat16) {
        attend_latent(model, layer, step, q, out, scratch, piece, 0, 0);
    } else if (layer->kv_b.layout == BFLOAT16_ROWS) {
        attend_latent(model, layer, step, q, out, scratch, piece, 1, 1);
    } else {
        attend_latent(model, layer, step, q, out, scratch, piece, 1, 0);
    }
}
