/* What the kinds of products share, and their pieces: `rows` rows from `first_row` on, at most as many as each says. */
#pragma once

#include "product.h"

enum { COLUMNS_OF_ROWS = 32 }; /* of a piece, where weights lie in rows */

INLINE void store_sums(const Product *product, int64_t row, int64_t column, const float *sums, int64_t count) {
    const float *bias = product->weight->bias;
    float *out = product->out + product->out_rows[row] * product->out_stride + column;
    for (int64_t i = 0; i < count; i++) out[i] = bias == NULL ? sums[i] : sums[i] + bias[column + i];
}

INLINE const float *operand_row(const Product *product, int64_t row) {
    int32_t layout = product->weight->layout, is_rounded = layout == BFLOAT16_ROWS || layout == BFLOAT16_BLOCKS;
    const Operand *operand = product->operand;
    return (is_rounded ? operand->pairs : operand->floats) + product->in_rows[row] * operand->stride;
}

/* product_bits.c: weights in few bits, on exact rows, four at once. */
void int4_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows);
void int8_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows);

/* product_tiles.c, where HAS_AMX: BFLOAT16_BLOCKS, 32 rows at once; BFLOAT16_ROWS with a turned operand, all rows at once. */
void tiles_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows);
void turned_piece(const Product *product, int64_t piece);
