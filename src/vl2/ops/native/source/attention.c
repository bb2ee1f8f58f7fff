#include "attention.h"

#include "counts.h"
#include "pointwise.h"

/* The cache's row of a position: page · page size + offset. */
INLINE int64_t slot_of(const Model *model, const Step *step, int64_t row, int64_t position) {
    int64_t page = step->tables[row * step->table_width + position / model->page_size];
    return page * model->page_size + position % model->page_size;
}

/* Rows of `width` numbers in a cache or a weight, `stride` numbers apart. */
typedef struct {
    const void *values;
    int64_t first, stride;
    int32_t is_bfloat16;
} Rows;

INLINE Floats vector_of(Rows rows, int64_t row, int64_t i) {
    return values_at(rows.values, rows.first + row * rows.stride + i, rows.is_bfloat16);
}

INLINE float number_of(Rows rows, int64_t row, int64_t i) {
    return value_at(rows.values, rows.first + row * rows.stride + i, rows.is_bfloat16);
}

/* scores[i] = factor · x · row i. Four rows at once: one row's additions would wait for each other. */
INLINE void dot_rows(const float *x, Rows rows, int64_t count, int64_t width, float factor, float *scores) {
    int64_t row = 0;
    for (; row + 4 <= count; row += 4) {
        Floats sums[4] = {{0}};
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) {
            Floats own = load_floats(x + i);
            UNROLL for (int k = 0; k < 4; k++) sums[k] += own * vector_of(rows, row + k, i);
        }
        for (int k = 0; k < 4; k++) {
            float total = sum_floats(sums[k]);
            for (int64_t rest = i; rest < width; rest++) total += x[rest] * number_of(rows, row + k, rest);
            scores[row + k] = total * factor;
        }
    }
    for (; row < count; row++)
        scores[row] = factor * dot_values(x, rows.values, rows.first + row * rows.stride, width, rows.is_bfloat16);
}

INLINE void add_block(float *x, const float *weights, Rows rows, int64_t count, int64_t first, int vectors) {
    Floats sums[4];
    UNROLL for (int v = 0; v < vectors; v++) sums[v] = load_floats(x + first + v * LANES);
    for (int64_t row = 0; row < count; row++)
        UNROLL for (int v = 0; v < vectors; v++) sums[v] += weights[row] * vector_of(rows, row, first + v * LANES);
    UNROLL for (int v = 0; v < vectors; v++) store_floats(x + first + v * LANES, sums[v]);
}

/* x += Σ weights[i] · row i, some columns at a time, whose sums stay in registers. */
INLINE void add_rows(float *x, const float *weights, Rows rows, int64_t count, int64_t width) {
    int64_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) add_block(x, weights, rows, count, i, 4);
    for (; i + LANES <= width; i += LANES) add_block(x, weights, rows, count, i, 1);
    for (; i < width; i++)
        for (int64_t row = 0; row < count; row++) x[i] += weights[row] * number_of(rows, row, i);
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
    return up(group * model->max_context + 2 * (model->rank + model->rope_dim), 16);
}

int64_t attention_pieces(const Model *model, const Step *step) {
    return step->rows * (model->rank ? model->heads : model->kv_heads);
}

/* Positions of a context that lie one behind the other: those of one page. */
typedef struct {
    int64_t position, slot, count;
} Run;

INLINE Run page_run(const Model *model, const Step *step, int64_t row, int64_t page, int64_t context) {
    int64_t position = page * model->page_size;
    return (Run){position, step->tables[row * step->table_width + page] * model->page_size,
                 smaller(context - position, model->page_size)};
}

INLINE void attend_heads(const Model *model, const Layer *layer, const Step *step, const float *q, float *out,
                         float *scores, int64_t piece, int is_bfloat16) {
    int64_t dim = model->head_dim, group = model->heads / model->kv_heads, kv_width = model->kv_heads * dim;
    int64_t row = piece / model->kv_heads, kv_head = piece % model->kv_heads;
    int64_t context = step->positions[row] + 1, pages = parts_of(context, model->page_size);
    const float *queries = q + row * (model->heads * dim + 2 * kv_width) + kv_head * group * dim;
    float *results = out + (row * model->heads + kv_head * group) * dim;
    Rows keys = {layer->pool, 0, kv_width, is_bfloat16}, values = keys;
    for (int64_t page = 0; page < pages; page++) {
        Run run = page_run(model, step, row, page, context);
        keys.first = run.slot * kv_width + kv_head * dim;
        for (int64_t head = 0; head < group; head++)
            dot_rows(queries + head * dim, keys, run.count, dim, model->scale, scores + head * context + run.position);
    }
    for (int64_t head = 0; head < group; head++) softmax(scores + head * context, context);
    memset(results, 0, (size_t)(group * dim) * sizeof(float));
    for (int64_t page = 0; page < pages; page++) {
        Run run = page_run(model, step, row, page, context);
        values.first = (model->num_slots + run.slot) * kv_width + kv_head * dim;
        for (int64_t head = 0; head < group; head++)
            add_rows(results + head * dim, scores + head * context + run.position, values, run.count, dim);
    }
}

/* Absorbed: the query is taken into the latent space by the head's keys' rows of kv_b, and the result out of it by its
 * values' rows; in between the head reads the latent rows themselves, of which the first `rank` are the values too. */
INLINE void attend_latent(const Model *model, const Layer *layer, const Step *step, const float *q, float *out,
                          float *scratch, int64_t piece, int is_bfloat16, int is_kv_b_bfloat16) {
    int64_t rank = model->rank, stride = rank + model->rope_dim, nope = model->nope_dim, value = model->value_dim;
    int64_t head = piece / step->rows, row = piece % step->rows, context = step->positions[row] + 1;
    int64_t pages = parts_of(context, model->page_size);
    const float *query = q + (row * model->heads + head) * (nope + model->rope_dim);
    Rows of_keys = {layer->kv_b.data, head * (nope + value) * rank, rank, is_kv_b_bfloat16}, of_values = of_keys;
    Rows cached = {layer->pool, 0, stride, is_bfloat16};
    float *absorbed = scratch, *latent = absorbed + stride, *scores = latent + stride;
    memset(absorbed, 0, (size_t)(2 * stride) * sizeof(float));
    add_rows(absorbed, query, of_keys, nope, rank);
    memcpy(absorbed + rank, query + nope, (size_t)model->rope_dim * sizeof(float));
    for (int64_t page = 0; page < pages; page++) {
        Run run = page_run(model, step, row, page, context);
        cached.first = run.slot * stride;
        dot_rows(absorbed, cached, run.count, stride, model->scale, scores + run.position);
    }
    softmax(scores, context);
    for (int64_t page = 0; page < pages; page++) {
        Run run = page_run(model, step, row, page, context);
        cached.first = run.slot * stride;
        add_rows(latent, scores + run.position, cached, run.count, rank);
    }
    of_values.first += nope * rank;
    dot_rows(latent, of_values, value, rank, 1.0f, out + (row * model->heads + head) * value);
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
