/* Parts of a step by themselves, as tests and measurements call them. */
#include <stdlib.h>

#include "engine.h"
#include "prompt.h"
#include "router.h"

static void piece(void *context, long idx, int thread) {
    (void)thread;
    product_piece(context, idx);
}

/* x [rows, in] times the weight → out [rows, out]. Returns 0, or -1 without memory. */
EXPORT int32_t vl2_multiply(const Matrix *weight, const float *x, int64_t rows, float *out, int32_t threads) {
    int64_t stride = operand_stride(weight->in_width);
    Pool *pool = pool_new(threads);
    float *values = aligned_alloc(64, (size_t)(rows * (2 * stride * (int64_t)sizeof(float) + operand_bytes(stride))));
    int32_t *numbers = malloc((size_t)rows * sizeof(int32_t));
    int32_t is_done = pool != NULL && values != NULL && numbers != NULL;
    if (is_done) {
        Operand operand = {values, values + rows * stride, stride, (int8_t *)(values + 2 * rows * stride)};
        for (int64_t row = 0; row < rows; row++) {
            operand_store(&operand, row, x + row * weight->in_width, weight->in_width);
            numbers[row] = (int32_t)row;
        }
        Product product = {weight, &operand, out, weight->out_width, numbers, numbers, rows};
        pool_run(pool, piece, &product, (long)product_pieces(&product));
    }
    free(numbers);
    free(values);
    if (pool != NULL) pool_free(pool);
    return is_done ? 0 : -1;
}

/* Of one token: scores [experts] are the router's products and are changed; `spare` holds 2 · experts numbers. */
EXPORT void vl2_route(const Model *model, const float *bias, float *scores, float *spare, int32_t *ids,
                      float *weights) {
    choose_experts(model, bias, scores, spare, ids, weights);
}

/* Bytes of the structures, which the caller compares with its own: a library of another version is not used. */
EXPORT void vl2_sizes(int64_t sizes[17]) {
    sizes[0] = sizeof(Matrix);
    sizes[1] = sizeof(Layer);
    sizes[2] = sizeof(Model);
    sizes[3] = sizeof(Step);
    sizes[4] = sizeof(PromptAttention);
    sizes[5] = sizeof(RowsJob);
    sizes[6] = sizeof(HeadsJob);
    sizes[7] = sizeof(ExpertsJob);
    sizes[8] = sizeof(RouterJob);
    sizes[9] = sizeof(LinearJob);
    sizes[10] = sizeof(LatentJob);
    sizes[11] = sizeof(NormJob);
    sizes[12] = sizeof(Chunk);
    sizes[13] = sizeof(DecoderJob);
    sizes[14] = sizeof(TowerBlock);
    sizes[15] = sizeof(TowerJob);
    sizes[16] = sizeof(ProjectorJob);
}
