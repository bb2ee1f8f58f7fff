#include "product.h"

enum { COLUMNS_OF_ROWS = 32 }; /* of a piece, where weights lie in rows */

void operand_store(const Operand *operand, int64_t row, const float *values, int64_t width) {
    float *to = operand->data + row * operand->stride;
    if (!operand->is_bfloat16) {
        memcpy(to, values, (size_t)width * sizeof(float));
        return;
    }
    int64_t padded = operand_stride(width);
#if HAS_BF16_DOT
    uint16_t *halves = (uint16_t *)to;
    for (int64_t i = 0; i < width; i++) halves[i] = to_bf16(values[i]);
    memset(halves + width, 0, (size_t)(padded - width) * sizeof(uint16_t));
#else
    float *even = to, *odd = to + padded / 2;
    memset(to, 0, (size_t)padded * sizeof(float));
    for (int64_t i = 0; i < width / 2; i++) {
        even[i] = from_bf16(to_bf16(values[2 * i]));
        odd[i] = from_bf16(to_bf16(values[2 * i + 1]));
    }
    if (width % 2) even[width / 2] = from_bf16(to_bf16(values[width - 1]));
#endif
}

/* total + the products of pairs of bfloat16: one pair of x for all lanes. `half` is where its odd elements begin. */
INLINE Floats add_one_pair(Floats total, Words weights, const float *x, int64_t half, int64_t pair) {
#if HAS_BF16_DOT
    (void)half;
    Words pairs = (Words){0} + to_bits(x[pair]);
    return (Floats)_mm512_dpbf16_ps((__m512)total, (__m512bh)weights, (__m512bh)pairs);
#else
    total += first_of_pairs(weights) * x[pair];
    return total + second_of_pairs(weights) * x[half + pair];
#endif
}

/* The same with a pair of x for each lane. */
INLINE Floats add_pairs(Floats total, Words weights, const float *x, int64_t half, int64_t pair) {
#if HAS_BF16_DOT
    (void)half;
    Words pairs = load_words((const uint32_t *)(const void *)(x + pair));
    return (Floats)_mm512_dpbf16_ps((__m512)total, (__m512bh)weights, (__m512bh)pairs);
#else
    total += first_of_pairs(weights) * load_floats(x + pair);
    return total + second_of_pairs(weights) * load_floats(x + half + pair);
#endif
}

INLINE void store_sum(const Product *product, int64_t row, int64_t column, float sum) {
    const float *bias = product->weight->bias;
    float *out = product->out + product->out_rows[row] * product->out_stride;
    out[column] = bias == NULL ? sum : sum + bias[column];
}

INLINE const float *operand_row(const Product *product, int64_t row) {
    return product->operand->data + product->in_rows[row] * product->operand->stride;
}

/* ---- weights in blocks: `vectors` vectors of columns, `rows` rows of x; both are constants where this is inlined */

INLINE void block_tile(const Product *product, const uint32_t *weights, int64_t first_row, int64_t column, int rows,
                       int vectors) {
    const Matrix *matrix = product->weight;
    const int64_t pairs = matrix->padded_in / 2, half = operand_stride(matrix->in_width) / 2;
    const float *x[ROWS_AT_ONCE];
    Floats sums[ROWS_AT_ONCE][4];
    for (int row = 0; row < rows; row++) {
        x[row] = operand_row(product, first_row + row);
        for (int v = 0; v < vectors; v++) sums[row][v] = (Floats){0};
    }
    for (int64_t pair = 0; pair < pairs; pair++, weights += matrix->block) {
        UNROLL for (int v = 0; v < vectors; v++) {
            Words loaded = load_words(weights + v * LANES);
            UNROLL for (int row = 0; row < rows; row++)
                sums[row][v] = add_one_pair(sums[row][v], loaded, x[row], half, pair);
        }
    }
    for (int row = 0; row < rows; row++)
        for (int v = 0; v < vectors; v++)
            for (int lane = 0; lane < LANES; lane++) {
                int64_t at = column + v * LANES + lane;
                if (at < matrix->out_width) store_sum(product, first_row + row, at, sums[row][v][lane]);
            }
}

INLINE void block_columns(const Product *product, int64_t piece, int64_t first_row, int rows, int most_vectors) {
    const Matrix *matrix = product->weight;
    const uint32_t *block = (const uint32_t *)matrix->data + piece * matrix->block * (matrix->padded_in / 2);
    int width = most_vectors * LANES;
    int64_t first = piece * matrix->block;
    int offset = 0;
    for (; offset + width <= matrix->block; offset += width)
        block_tile(product, block + offset, first_row, first + offset, rows, most_vectors);
    for (; offset < matrix->block; offset += LANES)
        block_tile(product, block + offset, first_row, first + offset, rows, 1);
}

static void block_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows) {
    enum { FEW = 4, SOME = LANES == 16 ? 4 : 2, MANY = LANES == 16 ? 2 : 1 }; /* vectors for which registers suffice */
    switch (rows) {
        case 1: block_columns(product, piece, first_row, 1, FEW); break;
        case 2: block_columns(product, piece, first_row, 2, FEW); break;
        case 3: block_columns(product, piece, first_row, 3, SOME); break;
        case 4: block_columns(product, piece, first_row, 4, SOME); break;
        case 5: block_columns(product, piece, first_row, 5, MANY); break;
        case 6: block_columns(product, piece, first_row, 6, MANY); break;
        case 7: block_columns(product, piece, first_row, 7, MANY); break;
        default: block_columns(product, piece, first_row, 8, MANY); break;
    }
}

/* ---- weights in rows: `columns` of them at once, for `rows` rows of x */

/* The elements behind the last full vector, one by one. */
INLINE float rest_of_row(const Matrix *matrix, int64_t column, const float *x, int64_t done) {
    float sum = 0.0f;
    if (matrix->layout == FLOAT32_ROWS) {
        const float *weights = (const float *)matrix->data + column * matrix->in_width;
        for (int64_t i = done; i < matrix->in_width; i++) sum += weights[i] * x[i];
        return sum;
    }
    const uint16_t *weights = (const uint16_t *)matrix->data + column * matrix->in_width;
    for (int64_t i = done; i < matrix->in_width; i++) {
#if HAS_BF16_DOT
        float value = from_bf16(((const uint16_t *)(const void *)x)[i]);
#else
        float value = x[i / 2 + i % 2 * (operand_stride(matrix->in_width) / 2)];
#endif
        sum += from_bf16(weights[i]) * value;
    }
    return sum;
}

INLINE void row_tile(const Product *product, int64_t first_row, int64_t column, int rows, int columns, int layout) {
    const Matrix *matrix = product->weight;
    const int64_t width = matrix->in_width, half = operand_stride(width) / 2;
    const int64_t step = layout == FLOAT32_ROWS ? LANES : 2 * LANES, done = width / step * step;
    const float *x[ROWS_AT_ONCE];
    Floats sums[ROWS_AT_ONCE][4];
    for (int row = 0; row < rows; row++) {
        x[row] = operand_row(product, first_row + row);
        for (int c = 0; c < columns; c++) sums[row][c] = (Floats){0};
    }
    const float *floats = (const float *)matrix->data + column * width;
    const uint16_t *halves = (const uint16_t *)matrix->data + column * width;
    for (int64_t i = 0; i < done; i += step) {
        UNROLL for (int c = 0; c < columns; c++) {
            UNROLL for (int row = 0; row < rows; row++) {
                if (layout == FLOAT32_ROWS) {
                    sums[row][c] += load_floats(floats + c * width + i) * load_floats(x[row] + i);
                } else {
                    Words loaded;
                    memcpy(&loaded, halves + c * width + i, sizeof loaded);
                    sums[row][c] = add_pairs(sums[row][c], loaded, x[row], half, i / 2);
                }
            }
        }
    }
    for (int row = 0; row < rows; row++)
        for (int c = 0; c < columns; c++) {
            float rest = rest_of_row(matrix, column + c, x[row], done);
            store_sum(product, first_row + row, column + c, sum_floats(sums[row][c]) + rest);
        }
}

INLINE void row_columns(const Product *product, int64_t piece, int64_t first_row, int rows, int columns, int layout) {
    int64_t column = piece * COLUMNS_OF_ROWS, end = column + COLUMNS_OF_ROWS;
    if (end > product->weight->out_width) end = product->weight->out_width;
    for (; column + columns <= end; column += columns) row_tile(product, first_row, column, rows, columns, layout);
    for (; column < end; column++) row_tile(product, first_row, column, rows, 1, layout);
}

INLINE void row_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows, int layout) {
    enum { SOME = LANES == 16 ? 4 : 2, MANY = LANES == 16 ? 2 : 1 };
    switch (rows) {
        case 1: row_columns(product, piece, first_row, 1, 4, layout); break;
        case 2: row_columns(product, piece, first_row, 2, 4, layout); break;
        case 3: row_columns(product, piece, first_row, 3, SOME, layout); break;
        case 4: row_columns(product, piece, first_row, 4, SOME, layout); break;
        case 5: row_columns(product, piece, first_row, 5, MANY, layout); break;
        case 6: row_columns(product, piece, first_row, 6, MANY, layout); break;
        case 7: row_columns(product, piece, first_row, 7, MANY, layout); break;
        default: row_columns(product, piece, first_row, 8, MANY, layout); break;
    }
}

int64_t product_pieces(const Product *product) {
    const Matrix *matrix = product->weight;
    int64_t columns = matrix->layout == BFLOAT16_BLOCKS ? matrix->block : COLUMNS_OF_ROWS;
    return (matrix->out_width + columns - 1) / columns;
}

void product_piece(const Product *product, int64_t piece) {
    for (int64_t row = 0; row < product->num_rows; row += ROWS_AT_ONCE) {
        int64_t rows = product->num_rows - row < ROWS_AT_ONCE ? product->num_rows - row : ROWS_AT_ONCE;
        switch (product->weight->layout) {
            case BFLOAT16_BLOCKS: block_piece(product, piece, row, rows); break;
            case BFLOAT16_ROWS: row_piece(product, piece, row, rows, BFLOAT16_ROWS); break;
            default: row_piece(product, piece, row, rows, FLOAT32_ROWS); break;
        }
    }
}
