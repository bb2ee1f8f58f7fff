/* y = x Wᵀ (+ b) for a few rows x: a weight is read from memory once for all of them, sums are float32. */
#pragma once

#include "counts.h"

typedef enum {
    FLOAT32_ROWS = 0,    /* [out, in] float32 */
    BFLOAT16_ROWS = 1,   /* [out, in] bfloat16 */
    BFLOAT16_BLOCKS = 2, /* [out / block, in / 2, block, 2] bfloat16, filled up with zeros: oneDNN's layout */
    INT4_BLOCKS = 3,     /* [out / block, in, block / 2] bytes, column j low and j + block / 2 high, 8 is 0: PyTorch's */
    INT8_ROWS = 4,       /* [out, in] int8 */
    BFLOAT12_BLOCKS = 5, /* BFLOAT16_BLOCKS in three quarters of the bytes: short.h */
} Layout;

/* A weight where torch holds it. All fields are read by Python too (ops/native/structures.py). */
typedef struct {
    const void *data;
    const float *bias; /* [out] or NULL */
    const void *scales; /* INT4: [in / group, out, 2], each with a zero point of 0; INT8: [out] */
    int64_t out_width, in_width;
    int64_t padded_in; /* of BFLOAT16_BLOCKS and BFLOAT12_BLOCKS: in_width as it is filled up */
    int64_t group;     /* inputs that share a scale */
    int32_t layout, block;
    int32_t has_bfloat16_scales, filler;
} Matrix;

/* Rows x as products read them, `stride` floats (4 bytes) apart: as they are, and for bfloat16 weights rounded to that. There
 * they lie in pairs where the processor multiplies such, else as floats with all even elements first, then all odd ones. */
typedef struct {
    float *floats;
    float *pairs; /* NULL: no weight is bfloat16 */
    int64_t stride;
    int8_t *bytes; /* the rows for weights in few bits (bytes.h), operand_bytes apart; NULL: there are none */
} Operand;

/* Floats that an operand's row of `width` numbers takes: it may be filled up to 64 numbers. */
INLINE int64_t operand_stride(int64_t width) { return up(width, 64); }

enum { OPERAND_BLOCK = 128 };

/* Bytes that a row takes in `bytes`: two a number, of each block 16 sums and a step, and more sums. */
INLINE int64_t operand_bytes(int64_t stride) {
    return 2 * stride + up(stride / 8 + 68 * parts_of(stride, OPERAND_BLOCK), 64);
}

void operand_store(const Operand *operand, int64_t row, const float *values, int64_t width);

/* Rows of one product: row i is operand row in_rows[i], its result goes to out + out_rows[i] · out_stride. */
typedef struct {
    const Matrix *weight;
    const Operand *operand;
    float *out;
    int64_t out_stride;
    const int32_t *in_rows, *out_rows;
    int64_t num_rows;
} Product;

/* A product is done in pieces, of some columns of y each. */
int64_t product_pieces(const Product *product);
void product_piece(const Product *product, int64_t piece);
