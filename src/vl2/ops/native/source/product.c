#include "amx.h"
#include "product_pieces.h"
#include "short.h"

enum {
    ROWS_AT_ONCE = LANES == 16 ? 6 : 4, /* for whose sums, times four, registers suffice: 32 of them, or 16 */
    COLUMNS_OF_MANY = LANES == 16 ? 4 : 2,   /* of three rows and more on 16 registers half as many columns */
};

void operand_store(const Operand *operand, int64_t row, const float *values, int64_t width) {
    memcpy(operand->floats + row * operand->stride, values, (size_t)width * sizeof(float));
#if HAS_BYTE_DOT
    if (operand->bytes != NULL) bytes_store(operand, row, values, width);
#endif
    if (operand->pairs == NULL) return;
    int64_t padded = operand_stride(width);
    float *to = operand->pairs + row * operand->stride;
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

/* ---- weights in blocks: `vectors` vectors of columns, `rows` rows of x; both are constants where this is inlined */

INLINE void block_tile(const Product *product, const uint32_t *weights, int64_t first_row, int64_t column, int rows,
                       int vectors) {
    const Matrix *matrix = product->weight;
    const int64_t pairs = matrix->padded_in / 2, half = operand_stride(matrix->in_width) / 2;
    const float *x[ROWS_AT_ONCE];
    Floats sums[ROWS_AT_ONCE][4];
    UNROLL for (int row = 0; row < rows; row++) {
        x[row] = operand_row(product, first_row + row);
        UNROLL for (int v = 0; v < vectors; v++) sums[row][v] = (Floats){0};
    }
    for (int64_t pair = 0; pair < pairs; pair++, weights += matrix->block) {
        read_ahead(weights, vectors * LANES * 4);
        UNROLL for (int v = 0; v < vectors; v++) {
            Words loaded = load_words(weights + v * LANES);
            UNROLL for (int row = 0; row < rows; row++)
                sums[row][v] = add_one_pair(sums[row][v], loaded, x[row], half, pair);
        }
    }
    float done[ROWS_AT_ONCE][4 * LANES];
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int v = 0; v < vectors; v++) store_floats(&done[row][v * LANES], sums[row][v]);
    int64_t wanted = smaller(matrix->out_width - column, vectors * LANES);
    for (int row = 0; row < rows; row++) store_sums(product, first_row + row, column, done[row], wanted);
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
    switch (rows) {
        case 1: block_columns(product, piece, first_row, 1, 4); break;
        case 2: block_columns(product, piece, first_row, 2, 4); break;
        case 3: block_columns(product, piece, first_row, 3, COLUMNS_OF_MANY); break;
        case 4: block_columns(product, piece, first_row, 4, COLUMNS_OF_MANY); break;
#if LANES == 16
        case 5: block_columns(product, piece, first_row, 5, 4); break;
        default: block_columns(product, piece, first_row, 6, 4); break;
#endif
    }
}

/* ---- weights in rows: one after the other, as the memory is read fastest, for `rows` rows of x */

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

INLINE Floats add_vector(Floats total, const Matrix *matrix, int64_t at, const float *x, int64_t i, int layout) {
    if (layout == FLOAT32_ROWS) return total + load_floats((const float *)matrix->data + at + i) * load_floats(x + i);
    Words weights;
    memcpy(&weights, (const uint16_t *)matrix->data + at + i, sizeof weights);
    return add_pairs(total, weights, x, operand_stride(matrix->in_width) / 2, i / 2);
}

/* Two sums for each row, or the additions of a single row would wait for each other. */
INLINE void row_tile(const Product *product, int64_t first_row, int64_t column, int rows, int layout) {
    const Matrix *matrix = product->weight;
    const int64_t width = matrix->in_width, step = layout == FLOAT32_ROWS ? LANES : 2 * LANES;
    const float *x[ROWS_AT_ONCE];
    Floats sums[ROWS_AT_ONCE], others[ROWS_AT_ONCE];
    UNROLL for (int row = 0; row < rows; row++) {
        x[row] = operand_row(product, first_row + row);
        sums[row] = others[row] = (Floats){0};
    }
    int64_t i = 0, at = column * width, size = layout == FLOAT32_ROWS ? 4 : 2;
    for (; i + 2 * step <= width; i += 2 * step) {
        read_ahead((const char *)matrix->data + (at + i) * size, 2 * step * size);
        UNROLL for (int row = 0; row < rows; row++) {
            sums[row] = add_vector(sums[row], matrix, at, x[row], i, layout);
            others[row] = add_vector(others[row], matrix, at, x[row], i + step, layout);
        }
    }
    float done[ROWS_AT_ONCE];
    UNROLL for (int row = 0; row < rows; row++) {
        Floats sum = sums[row] + others[row];
        if (i + step <= width) sum = add_vector(sum, matrix, at, x[row], i, layout);
        done[row] = sum_floats(sum);
    }
    for (int row = 0; row < rows; row++) {
        done[row] += rest_of_row(matrix, column, x[row], width / step * step);
        store_sums(product, first_row + row, column, &done[row], 1);
    }
}

INLINE void row_columns(const Product *product, int64_t piece, int64_t first_row, int rows, int layout) {
    int64_t column = piece * COLUMNS_OF_ROWS, end = smaller(column + COLUMNS_OF_ROWS, product->weight->out_width);
    for (; column < end; column++) row_tile(product, first_row, column, rows, layout);
}

INLINE void row_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows, int layout) {
    switch (rows) {
        case 1: row_columns(product, piece, first_row, 1, layout); break;
        case 2: row_columns(product, piece, first_row, 2, layout); break;
        case 3: row_columns(product, piece, first_row, 3, layout); break;
        case 4: row_columns(product, piece, first_row, 4, layout); break;
#if LANES == 16
        case 5: row_columns(product, piece, first_row, 5, layout); break;
        default: row_columns(product, piece, first_row, 6, layout); break;
#endif
    }
}

int64_t product_pieces(const Product *product) {
    const Matrix *matrix = product->weight;
    int is_rows = matrix->layout == FLOAT32_ROWS || matrix->layout == BFLOAT16_ROWS || matrix->layout == INT8_ROWS;
    int64_t columns = is_rows ? COLUMNS_OF_ROWS : matrix->block;
    return parts_of(matrix->out_width, columns);
}

INLINE int64_t rows_at_once(const Product *product) {
    const Matrix *matrix = product->weight;
    if (is_for_bytes(matrix)) return matrix->layout == INT8_ROWS ? 4 : is_for_int4_tiles(product) ? 16 : 3;
    if (is_for_tiles(matrix)) return 32;
    int is_decoded = matrix->layout == INT4_BLOCKS || matrix->layout == INT8_ROWS || matrix->layout == BFLOAT12_BLOCKS;
    return is_decoded ? 4 : ROWS_AT_ONCE;
}

INLINE void few_bits_piece(const Product *product, int64_t piece, int64_t row, int64_t rows) {
    int is_int4 = product->weight->layout == INT4_BLOCKS;
#if HAS_BYTE_DOT
    if (is_for_bytes(product->weight)) {
        if (is_for_int4_tiles(product)) int4_tiles_piece(product, piece, row, rows);
        else (is_int4 ? int4_bytes_piece : int8_bytes_piece)(product, piece, row, rows);
        return;
    }
#endif
    (is_int4 ? int4_piece : int8_piece)(product, piece, row, rows);
}

INLINE void some_rows(const Product *product, int64_t piece, int64_t row, int64_t rows) {
    switch (product->weight->layout) {
        case INT4_BLOCKS:
        case INT8_ROWS: few_bits_piece(product, piece, row, rows); break;
        case BFLOAT16_BLOCKS: (is_for_tiles(product->weight) ? tiles_piece : block_piece)(product, piece, row, rows); break;
#if HAS_AMX
        case BFLOAT12_BLOCKS: short_tiles_piece(product, piece, row, rows); break;
#elif HAS_BF16_DOT
        case BFLOAT12_BLOCKS: short_piece(product, piece, row, rows); break;
#endif
        case BFLOAT16_ROWS: row_piece(product, piece, row, rows, BFLOAT16_ROWS); break;
        default: row_piece(product, piece, row, rows, FLOAT32_ROWS); break;
    }
}

void product_piece(const Product *product, int64_t piece) {
    int64_t most = rows_at_once(product), groups = parts_of(product->num_rows, most);
    for (int64_t group = 0; group < groups; group++) { /* equally large: 8 rows are 4 and 4, not 6 and 2 */
        int64_t row = group * product->num_rows / groups, rows = (group + 1) * product->num_rows / groups - row;
        some_rows(product, piece, row, rows);
    }
}
