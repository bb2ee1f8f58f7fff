#include "product.h"

#include "amx.h"

enum {
    COLUMNS_OF_ROWS = 32,               /* of a piece, where weights lie in rows */
    ROWS_AT_ONCE = LANES == 16 ? 6 : 4, /* for whose sums, times four, registers suffice: 32 of them, or 16 */
    COLUMNS_OF_MANY = LANES == 16 ? 4 : 2,   /* of three rows and more on 16 registers half as many columns */
};

void operand_store(const Operand *operand, int64_t row, const float *values, int64_t width) {
    memcpy(operand->floats + row * operand->stride, values, (size_t)width * sizeof(float));
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
        UNROLL for (int v = 0; v < vectors; v++) {
            Words loaded = load_words(weights + v * LANES);
            UNROLL for (int row = 0; row < rows; row++)
                sums[row][v] = add_one_pair(sums[row][v], loaded, x[row], half, pair);
        }
    }
    float done[ROWS_AT_ONCE][4 * LANES];
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int v = 0; v < vectors; v++) store_floats(&done[row][v * LANES], sums[row][v]);
    int64_t wanted = matrix->out_width - column < vectors * LANES ? matrix->out_width - column : vectors * LANES;
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

#if HAS_AMX

/* ---- weights in blocks, on matrix units: up to 32 rows */

enum { NUMBERS_AT_ONCE = 512, MOST_BLOCK = 64 };

/* `numbers` of each row from `begin` on: where they lie if the rows follow one another, else copied to `room`. */
INLINE const void *operand_tiles(const Product *product, int64_t first_row, int64_t rows, int64_t begin,
                                 int64_t numbers, uint16_t *room, int64_t *row_bytes) {
    const int32_t *in_rows = product->in_rows + first_row;
    *row_bytes = product->operand->stride * 4;
    if (in_rows[rows - 1] - in_rows[0] == rows - 1) return (const uint16_t *)operand_row(product, first_row) + begin;
    for (int64_t row = 0; row < rows; row++)
        memcpy(room + row * numbers, (const uint16_t *)operand_row(product, first_row + row) + begin,
               (size_t)numbers * sizeof *room);
    *row_bytes = numbers * 2;
    return room;
}

INLINE void tiles_columns(const Product *product, const uint32_t *weights, int64_t first_row, int64_t rows,
                          int is_few, int vectors, float *out) {
    const Matrix *matrix = product->weight;
    uint16_t room[MOST_TILE_ROWS * NUMBERS_AT_ONCE];
    tiles_zero();
    for (int64_t begin = 0; begin < matrix->padded_in; begin += NUMBERS_AT_ONCE) {
        int64_t rest = matrix->padded_in - begin, numbers = rest < NUMBERS_AT_ONCE ? rest : NUMBERS_AT_ONCE, x_bytes;
        const void *x = operand_tiles(product, first_row, rows, begin, numbers, room, &x_bytes);
        const uint32_t *from = weights + begin / 2 * matrix->block;
        if (is_few) tiles_add_few(x, x_bytes, from, matrix->block, numbers / TILE_NUMBERS, vectors);
        else tiles_add_many(x, x_bytes, from, matrix->block, numbers / TILE_NUMBERS, vectors);
    }
    if (is_few) tiles_store_few(out, MOST_BLOCK, vectors);
    else tiles_store_many(out, MOST_BLOCK, vectors);
}

static void tiles_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows) {
    const Matrix *matrix = product->weight;
    const uint32_t *block = (const uint32_t *)matrix->data + piece * matrix->block * (matrix->padded_in / 2);
    float done[MOST_TILE_ROWS][MOST_BLOCK];
    int64_t first = piece * matrix->block, offset = 0;
    tiles_begin(rows);
    if (rows <= TILE_ROWS) {
        switch (matrix->block / LANES) {
            case 1: tiles_columns(product, block, first_row, rows, 1, 1, done[0]); break;
            case 2: tiles_columns(product, block, first_row, rows, 1, 2, done[0]); break;
            case 3: tiles_columns(product, block, first_row, rows, 1, 3, done[0]); break;
            default: tiles_columns(product, block, first_row, rows, 1, 4, done[0]);
        }
    } else {
        for (; offset + 2 * LANES <= matrix->block; offset += 2 * LANES)
            tiles_columns(product, block + offset, first_row, rows, 0, 2, done[0] + offset);
        if (offset < matrix->block) tiles_columns(product, block + offset, first_row, rows, 0, 1, done[0] + offset);
    }
    tiles_end();
    int64_t wanted = matrix->out_width - first < matrix->block ? matrix->out_width - first : matrix->block;
    for (int64_t row = 0; row < rows; row++) store_sums(product, first_row + row, first, done[row], wanted);
}

#endif

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
    int64_t i = 0, at = column * width;
    for (; i + 2 * step <= width; i += 2 * step) {
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
    int64_t column = piece * COLUMNS_OF_ROWS, end = column + COLUMNS_OF_ROWS;
    if (end > product->weight->out_width) end = product->weight->out_width;
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

/* ---- weights in few bits, on exact rows */

INLINE Floats decode_codes(Words codes) {
#if LANES == 16
    const Floats values = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7}; /* found by the lowest four bits */
    return (Floats)_mm512_permutexvar_ps((__m512i)codes, (__m512)values);
#else
    typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
    return __builtin_convertvector((Integers)(codes & 15u) - 8, Floats);
#endif
}

/* Scales of columns `first` on; each has its zero point behind it. */
INLINE Floats load_scales(const Matrix *matrix, int64_t first) {
    if (matrix->has_bfloat16_scales) return first_of_pairs(load_words((const uint32_t *)matrix->scales + first));
    Floats scales;
    for (int lane = 0; lane < LANES; lane++) scales[lane] = ((const float *)matrix->scales)[2 * (first + lane)];
    return scales;
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

static void int4_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows) {
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
    int64_t column = piece * COLUMNS_OF_ROWS, end = column + COLUMNS_OF_ROWS;
    const float *x[4];
    for (int row = 0; row < rows; row++) x[row] = operand_row(product, first_row + row);
    if (end > matrix->out_width) end = matrix->out_width;
    for (; column < end; column++) {
        const int8_t *codes = (const int8_t *)matrix->data + column * width;
        Floats sums[4], others[4];
        UNROLL for (int row = 0; row < rows; row++) sums[row] = others[row] = (Floats){0};
        int64_t i = 0;
        for (; i + 2 * LANES <= width; i += 2 * LANES) {
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

static void int8_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows) {
    switch (rows) {
        case 1: int8_columns(product, piece, first_row, 1); break;
        case 2: int8_columns(product, piece, first_row, 2); break;
        case 3: int8_columns(product, piece, first_row, 3); break;
        default: int8_columns(product, piece, first_row, 4); break;
    }
}

int64_t product_pieces(const Product *product) {
    const Matrix *matrix = product->weight;
    int is_blocks = matrix->layout == BFLOAT16_BLOCKS || matrix->layout == INT4_BLOCKS;
    int64_t columns = is_blocks ? matrix->block : COLUMNS_OF_ROWS;
    return (matrix->out_width + columns - 1) / columns;
}

/* Whether tiles multiply it, whatever the number of rows. */
INLINE int is_for_tiles(const Matrix *matrix) {
    return HAS_AMX && matrix->layout == BFLOAT16_BLOCKS && matrix->padded_in % 32 == 0;
}

INLINE int64_t rows_at_once(const Matrix *matrix) {
    if (is_for_tiles(matrix)) return 32;
    return matrix->layout == INT4_BLOCKS || matrix->layout == INT8_ROWS ? 4 : ROWS_AT_ONCE;
}

void product_piece(const Product *product, int64_t piece) {
    const Matrix *matrix = product->weight;
    int64_t most = rows_at_once(matrix), groups = (product->num_rows + most - 1) / most;
    for (int64_t group = 0; group < groups; group++) { /* equally large: 8 rows are 4 and 4, not 6 and 2 */
        int64_t row = group * product->num_rows / groups, rows = (group + 1) * product->num_rows / groups - row;
#if HAS_AMX
        if (is_for_tiles(matrix)) {
            tiles_piece(product, piece, row, rows);
            continue;
        }
#endif
        switch (matrix->layout) {
            case INT4_BLOCKS: int4_piece(product, piece, row, rows); break;
            case INT8_ROWS: int8_piece(product, piece, row, rows); break;
            case BFLOAT16_BLOCKS: block_piece(product, piece, row, rows); break;
            case BFLOAT16_ROWS: row_piece(product, piece, row, rows, BFLOAT16_ROWS); break;
            default: row_piece(product, piece, row, rows, FLOAT32_ROWS); break;
        }
    }
}
