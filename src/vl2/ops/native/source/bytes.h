/* Rows x as whole numbers of 16 bits, in two bytes each, for products with weights in few bits: where the processor
 * multiplies bytes and adds them up in 32 bits (VNNI), sums of a block are exact, so that a row's bits depend on nothing
 * beside it, nor on whether vectors or matrix units add them up.
 *
 * A number stands for itself times its block's step, which is the block's largest number over 32639. Rounding to that is
 * an error of 2e-5 to 3e-5 of random sums, where rounding to bfloat16 is one of 2e-3. */
#pragma once

#include "product.h"

#if defined(__AVX512VNNI__) && HAS_BF16_DOT
#define HAS_BYTE_DOT 1
#else
#define HAS_BYTE_DOT 0
#endif

enum {
    STEP_INPUTS = OPERAND_BLOCK, /* of a row, that share a step */
    SUM_INPUTS = 32,             /* of a row, of which it holds the sum */
    FEW_BITS_AHEAD = 4096,       /* bytes: 16 KiB, as elsewhere, is the whole matrix of a small expert */
};

/* Whether a weight is multiplied by bytes: in a bfloat16 model. */
INLINE int is_for_bytes(const Matrix *matrix) {
    if (!HAS_BYTE_DOT || !matrix->has_bfloat16_scales) return 0;
    if (matrix->layout == INT8_ROWS) return 1;
    int64_t group = matrix->group;
    return matrix->layout == INT4_BLOCKS && matrix->block == 64 && group % SUM_INPUTS == 0 &&
           (STEP_INPUTS % group == 0 || group % STEP_INPUTS == 0);
}

#if HAS_BYTE_DOT

/* One row of an operand: numbers are 256 · high + low. */
typedef struct {
    int8_t *high, *low; /* [stride], zeros behind the row's end */
    int32_t *lanes;     /* [blocks, 16]: -128 times the sum of the block's numbers that meet in a lane, by fours */
    int32_t *sums;      /* [stride / 32]: -8 times the sum of so many numbers */
    float *steps;       /* [blocks] */
} ByteRow;

INLINE ByteRow byte_row(const Operand *operand, int64_t row) {
    int64_t stride = operand->stride, blocks = parts_of(stride, STEP_INPUTS);
    int8_t *high = operand->bytes + row * operand_bytes(stride);
    int32_t *lanes = (int32_t *)(void *)(high + 2 * stride), *sums = lanes + blocks * LANES;
    return (ByteRow){high, high + stride, lanes, sums, (float *)(void *)(sums + stride / SUM_INPUTS)};
}

/* total + bytes without a sign times bytes with one, by fours */
INLINE __m512i add_bytes(__m512i total, __m512i unsigned_bytes, __m512i signed_bytes) {
    return _mm512_dpbusd_epi32(total, unsigned_bytes, signed_bytes);
}

/* total + (256 · high + low) · scale */
INLINE Floats add_scaled(Floats total, __m512i high, __m512i low, Floats scale) {
    return total + (Floats)_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low)) * scale;
}

#endif
