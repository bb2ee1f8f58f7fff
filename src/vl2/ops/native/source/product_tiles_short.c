/* Products with weights in 12 bits on matrix units: they become bfloat16 on their way into a tile, and have the bits that
 * BFLOAT16_BLOCKS gives. */
#include "amx.h"
#include "product_pieces.h"
#include "short.h"

#if HAS_AMX

enum { MOST_VECTORS = 4 };

/* Of 32 inputs, [16 pairs, vectors · 16]. */
typedef uint32_t Pairs[TILE_ROWS * MOST_VECTORS * LANES];

/* A step's lines from `line` and `column` of their block on, of `vectors` vectors of columns. */
INLINE void unpack_step(const Short *from, int64_t line, int64_t column, int vectors, uint32_t *to) {
    for (int64_t end = line + TILE_ROWS; line < end; line++, to += vectors * LANES) {
        short_ahead(from, line, column, vectors);
        UNROLL for (int v = 0; v < vectors; v += 2) {
            __m512i words[2];
            short_words(from, line, column + v * LANES, words);
            _mm512_store_si512(to + v * LANES, words[0]);
            _mm512_store_si512(to + (v + 1) * LANES, words[1]);
        }
    }
}

/* Each step is unpacked one step before it is multiplied, as tile loads wait for stores. */
INLINE void short_columns(const Product *product, int64_t piece, int64_t column, int64_t first_row, int64_t rows,
                          int is_few, int vectors, float *out, int64_t out_row) {
    const Short from = short_of(product->weight);
    _Alignas(64) Pairs pairs[2];
    uint16_t room[MOST_TILE_ROWS * NUMBERS_AT_ONCE];
    int64_t line = piece * from.pairs, steps = from.pairs / TILE_ROWS, x_bytes = 0;
    const char *x = NULL;
    tiles_zero();
    unpack_step(&from, line, column, vectors, pairs[0]);
    for (int64_t step = 0; step < steps; step++, x += TILE_BYTES) {
        int64_t begin = step * TILE_NUMBERS;
        if (begin % NUMBERS_AT_ONCE == 0)
            x = operand_tiles(product, first_row, rows, begin, smaller(2 * from.pairs - begin, NUMBERS_AT_ONCE), room, &x_bytes);
        tiles_see_stores();
        if (step + 1 < steps)
            unpack_step(&from, line + (step + 1) * TILE_ROWS, column, vectors, pairs[(step + 1) % 2]);
        tiles_see_stores();
        if (is_few) tiles_step_few(x, x_bytes, pairs[step % 2], vectors * LANES, vectors);
        else tiles_step_many(x, x_bytes, pairs[step % 2], vectors * LANES, vectors);
    }
    if (is_few) tiles_store_few(out, out_row, vectors);
    else tiles_store_many(out, out_row, vectors);
}

void short_tiles_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows) {
    const Matrix *matrix = product->weight;
    int64_t block = matrix->block, first = piece * block, wanted = smaller(matrix->out_width - first, block);
    float done[MOST_TILE_ROWS][MOST_VECTORS * LANES];
    tiles_begin(rows);
    if (rows > TILE_ROWS)
        for (int64_t column = 0; column < block; column += SHORT_STRIP)
            short_columns(product, piece, column, first_row, rows, 0, 2, done[0] + column, MOST_VECTORS * LANES);
    else if (block == MOST_VECTORS * LANES)
        short_columns(product, piece, 0, first_row, rows, 1, 4, done[0], MOST_VECTORS * LANES);
    else
        short_columns(product, piece, 0, first_row, rows, 1, 2, done[0], MOST_VECTORS * LANES);
    tiles_end();
    for (int64_t row = 0; row < rows; row++) store_sums(product, first_row + row, first, done[row], wanted);
}

#endif
