/* What the kinds of products share, and their pieces: `rows` rows from `first_row` on, at most as many as each says. */
#pragma once

#include "amx.h"
#include "bytes.h"
#include "product.h"

enum {
    COLUMNS_OF_ROWS = 32,  /* of a piece, where weights lie in rows */
    NUMBERS_AT_ONCE = 512, /* of a row, on their way into tiles */
};

INLINE void store_sums(const Product *product, int64_t row, int64_t column, const float *sums, int64_t count) {
    const float *bias = product->weight->bias;
    float *out = product->out + product->out_rows[row] * product->out_stride + column;
    for (int64_t i = 0; i < count; i++) out[i] = bias == NULL ? sums[i] : sums[i] + bias[column + i];
}

/* Whether matrix units multiply it, whatever the number of rows: in a bfloat16 model, where it lies as they need it. */
INLINE int is_for_tiles(const Matrix *matrix) {
    if (!HAS_AMX) return 0;
    return (matrix->layout == BFLOAT16_BLOCKS || matrix->layout == BFLOAT12_BLOCKS) && matrix->padded_in % 32 == 0;
}

/* Matrix units multiply 4-bit weights of more rows than bytes take at once. */
INLINE int is_for_int4_tiles(const Product *product) {
    return HAS_AMX && product->num_rows > 3 && product->weight->layout == INT4_BLOCKS && is_for_bytes(product->weight);
}

INLINE const float *operand_row(const Product *product, int64_t row) {
    const Matrix *matrix = product->weight;
    int is_rounded = matrix->layout == BFLOAT16_ROWS || matrix->layout == BFLOAT16_BLOCKS ||
                     matrix->layout == BFLOAT12_BLOCKS || is_for_tiles(matrix);
    const Operand *operand = product->operand;
    return (is_rounded ? operand->pairs : operand->floats) + product->in_rows[row] * operand->stride;
}

#if HAS_AMX

INLINE int follow_one_another(const int32_t *rows, int64_t count) {
    int is_so = 1;
    for (int64_t i = 1; i < count; i++) is_so &= rows[i] == rows[i - 1] + 1;
    return is_so;
}

/* `numbers` of each row from `begin` on: where they lie if the rows follow one another, else copied to `room`. */
INLINE const char *operand_tiles(const Product *product, int64_t first_row, int64_t rows, int64_t begin,
                                 int64_t numbers, uint16_t *room, int64_t *row_bytes) {
    const int32_t *in_rows = product->in_rows + first_row;
    *row_bytes = product->operand->stride * 4;
    if (follow_one_another(in_rows, rows)) return (const char *)((const uint16_t *)operand_row(product, first_row) + begin);
    for (int64_t row = 0; row < rows; row++)
        memcpy(room + row * numbers, (const uint16_t *)operand_row(product, first_row + row) + begin,
               (size_t)numbers * sizeof *room);
    *row_bytes = numbers * 2;
    return (const char *)room;
}

#endif

/* Scales of columns `first` on; each has its zero point behind it. */
INLINE Floats load_scales(const Matrix *matrix, int64_t first) {
    if (matrix->has_bfloat16_scales) return first_of_pairs(load_words((const uint32_t *)matrix->scales + first));
    Floats scales;
    for (int lane = 0; lane < LANES; lane++) scales[lane] = ((const float *)matrix->scales)[2 * (first + lane)];
    return scales;
}

/* product_bits.c: weights in few bits that are not for bytes, on exact rows, four at once. */
void int4_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows);
void int8_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows);

/* product_bytes.c, where HAS_BYTE_DOT: weights in few bits that are for bytes; three rows at once, of int8 four. */
void bytes_store(const Operand *operand, int64_t row, const float *values, int64_t width);
void int4_bytes_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows);
void int8_bytes_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows);

/* product_short.c, where the processor multiplies bfloat16 without matrix units: BFLOAT12_BLOCKS, four rows at once. */
void short_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows);

/* product_tiles.c, where HAS_AMX: BFLOAT16_BLOCKS, 32 rows at once;
 * product_tiles_short.c: BFLOAT12_BLOCKS, 32 rows at once; product_tiles_int4.c: INT4_BLOCKS that are for
 * bytes, 16 rows at once. */
void tiles_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows);
void short_tiles_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows);
void int4_tiles_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows);
