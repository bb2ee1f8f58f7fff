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

#endif
