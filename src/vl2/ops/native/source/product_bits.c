/* Products with weights in few bits, on exact rows. */
#include "product_pieces.h"

INLINE Floats decode_codes(Words codes) {
#if LANES == 16
    const Floats values = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7}; /* found by the lowest four bits */
    return (Floats)_mm512_permutexvar_ps((__m512i)codes, (__m512)values);
#else
    typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
    return __builtin_convertvector((Integers)(codes & 15u) - 8, Floats);
#endif
}

/* Four vectors of columns: two of the block's first half from `offset` on, and the same two of its second half. */
INLINE void int4_tile(const Product *product, int64_t piece, int offset, int64_t first_row, int rows) {
    const Matrix *matrix = product->weight;
    const int64_t half = matrix->block / 2, group = matrix->group;
    const uint8_t *codes = (const uint8_t *)matrix->data + piece * half * matrix->in_width + offset;
    const int64_t columns[4] = {offset, offset + LANES, half + offset, half + offset + LANES};
    float totals[4][4][LANES] = {0};
    const float *x[4];
    for (int row = 0; row < rows; row++) x[row] = operand_row(product, first_row + row);
    for (int64_t begin = 0; begin < matrix->in_width; begin += group) {
        Floats sums[4][4];
        UNROLL for (int row = 0; row < rows; row++)
            UNROLL for (int v = 0; v < 4; v++) sums[row][v] = (Floats){0};
        for (int64_t i = begin; i < begin + group; i++) {
            read_ahead(codes + i * half, 2 * LANES);
            Words first = widen_bytes(codes + i * half), second = widen_bytes(codes + i * half + LANES);
            Floats values[4] = {decode_codes(first), decode_codes(second), decode_codes(first >> 4),
                                decode_codes(second >> 4)};
            UNROLL for (int row = 0; row < rows; row++)
                UNROLL for (int v = 0; v < 4; v++) sums[row][v] += values[v] * x[row][i];
        }
        int64_t scales = begin / group * matrix->out_width + piece * matrix->block;
        UNROLL for (int v = 0; v < 4; v++) {
            Floats scale = load_scales(matrix, scales + columns[v]);
            UNROLL for (int row = 0; row < rows; row++)
                store_floats(totals[row][v], load_floats(totals[row][v]) + sums[row][v] * scale);
        }
    }
    for (int row = 0; row < rows; row++)
        for (int v = 0; v < 4; v++)
            store_sums(product, first_row + row, piece * matrix->block + columns[v], totals[row][v], LANES);
}

INLINE void int4_columns(const Product *product, int64_t piece, int64_t first_row, int rows) {
    for (int offset = 0; offset < product->weight->block / 2; offset += 2 * LANES)
        int4_tile(product, piece, offset, first_row, rows);
}

void int4_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows) {
    switch (rows) {
        case 1: int4_columns(product, piece, first_row, 1); break;
        case 2: int4_columns(product, piece, first_row, 2); break;
        case 3: int4_columns(product, piece, first_row, 3); break;
        default: int4_columns(product, piece, first_row, 4); break;
    }
}

INLINE void int8_columns(const Product *product, int64_t piece, int64_t first_row, int rows) {
    const Matrix *matrix = product->weight;
    const int64_t width = matrix->in_width;
    int64_t column = piece * COLUMNS_OF_ROWS, end = smaller(column + COLUMNS_OF_ROWS, matrix->out_width);
    const float *x[4];
    for (int row = 0; row < rows; row++) x[row] = operand_row(product, first_row + row);
    for (; column < end; column++) {
        const int8_t *codes = (const int8_t *)matrix->data + column * width;
        Floats sums[4], others[4];
        UNROLL for (int row = 0; row < rows; row++) sums[row] = others[row] = (Floats){0};
        int64_t i = 0;
        for (; i + 2 * LANES <= width; i += 2 * LANES) {
            read_ahead(codes + i, 2 * LANES);
            Floats first = widen_signed(codes + i), second = widen_signed(codes + i + LANES);
            UNROLL for (int row = 0; row < rows; row++) {
                sums[row] += first * load_floats(x[row] + i);
                others[row] += second * load_floats(x[row] + i + LANES);
            }
        }
        float done[4], scale = value_at(matrix->scales, column, matrix->has_bfloat16_scales);
        UNROLL for (int row = 0; row < rows; row++) done[row] = sum_floats(sums[row] + others[row]);
        for (int row = 0; row < rows; row++) {
            for (int64_t k = i; k < width; k++) done[row] += (float)codes[k] * x[row][k];
            done[row] *= scale;
            store_sums(product, first_row + row, column, &done[row], 1);
        }
    }
}

void int8_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows) {
    switch (rows) {
        case 1: int8_columns(product, piece, first_row, 1); break;
        case 2: int8_columns(product, piece, first_row, 2); break;
        case 3: int8_columns(product, piece, first_row, 3); break;
        default: int8_columns(product, piece, first_row, 4); break;
    }
}
