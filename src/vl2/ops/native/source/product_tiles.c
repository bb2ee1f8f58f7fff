/* Products on matrix units (amx.h). */
#include "amx.h"
#include "product_pieces.h"

#if HAS_AMX

/* ---- weights in blocks, on matrix units: up to 32 rows */

enum { MOST_BLOCK = 64 };

INLINE void tiles_columns(const Product *product, const uint32_t *weights, int64_t first_row, int64_t rows,
                          int is_few, int vectors, float *out) {
    const Matrix *matrix = product->weight;
    uint16_t room[MOST_TILE_ROWS * NUMBERS_AT_ONCE];
    tiles_zero();
    for (int64_t begin = 0; begin < matrix->padded_in; begin += NUMBERS_AT_ONCE) {
        int64_t numbers = smaller(matrix->padded_in - begin, NUMBERS_AT_ONCE), x_bytes;
        const char *x = operand_tiles(product, first_row, rows, begin, numbers, room, &x_bytes);
        const uint32_t *from = weights + begin / 2 * matrix->block;
        if (is_few) tiles_add_few(x, x_bytes, from, matrix->block, numbers / TILE_NUMBERS, vectors);
        else tiles_add_many(x, x_bytes, from, matrix->block, numbers / TILE_NUMBERS, vectors);
    }
    if (is_few) tiles_store_few(out, MOST_BLOCK, vectors);
    else tiles_store_many(out, MOST_BLOCK, vectors);
}

void tiles_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows) {
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
    int64_t wanted = smaller(matrix->out_width - first, matrix->block);
    for (int64_t row = 0; row < rows; row++) store_sums(product, first_row + row, first, done[row], wanted);
}

/* Weights in rows: 16 columns of y at a time, of all rows. */
static void turned_columns(const Product *product, int64_t column, int64_t columns) {
    const Matrix *matrix = product->weight;
    const uint16_t *weights = (const uint16_t *)matrix->data + column * matrix->in_width;
    int64_t row_bytes = 2 * matrix->in_width, steps = matrix->in_width / TILE_NUMBERS;
    int64_t group = TILE_ROWS * matrix->in_width / 2, num_groups = parts_of(product->num_rows, TILE_ROWS);
    float done[4][TILE_ROWS][TILE_ROWS], turned[TILE_ROWS];
    for (int64_t first = 0; first < num_groups; first += 4) {
        int64_t groups = smaller(num_groups - first, 4);
        const float *x = product->turned + first * group;
        tiles_zero();
        switch (groups) {
            case 1: tiles_add_turned(weights, row_bytes, x, group, steps, 1); break;
            case 2: tiles_add_turned(weights, row_bytes, x, group, steps, 2); break;
            case 3: tiles_add_turned(weights, row_bytes, x, group, steps, 3); break;
            default: tiles_add_turned(weights, row_bytes, x, group, steps, 4);
        }
        _tile_stored(0, done[0], TILE_BYTES);
        if (groups > 1) _tile_stored(1, done[1], TILE_BYTES);
        if (groups > 2) _tile_stored(2, done[2], TILE_BYTES);
        if (groups > 3) _tile_stored(3, done[3], TILE_BYTES);
        for (int64_t row = first * TILE_ROWS; row < product->num_rows && row < (first + 4) * TILE_ROWS; row++) {
            int64_t own = row - first * TILE_ROWS;
            for (int64_t i = 0; i < columns; i++) turned[i] = done[own / TILE_ROWS][i][own % TILE_ROWS];
            store_sums(product, row, column, turned, columns);
        }
    }
}

void turned_piece(const Product *product, int64_t piece) {
    int64_t column = piece * COLUMNS_OF_ROWS, end = smaller(column + COLUMNS_OF_ROWS, product->weight->out_width);
    for (; column < end; column += TILE_ROWS) {
        int64_t columns = smaller(end - column, TILE_ROWS);
        tiles_begin(columns);
        turned_columns(product, column, columns);
    }
    tiles_end();
}

#endif
