#include "engine.h"
#include "product_pieces.h"
#include "short.h"

#if HAS_BF16_DOT

#if !HAS_AMX

/* ---- products by vdpbf16ps; those on matrix units are in product_tiles_short.c */

INLINE void short_tile(const Product *product, int64_t piece, int64_t offset, int64_t first_row, int rows, int vectors) {
    const Short weights = short_of(product->weight);
    const uint32_t *x[4];
    __m512 sums[4][4];
    UNROLL for (int row = 0; row < rows; row++) {
        x[row] = (const uint32_t *)(const void *)operand_row(product, first_row + row);
        UNROLL for (int v = 0; v < vectors; v++) sums[row][v] = _mm512_setzero_ps();
    }
    int64_t line = piece * weights.pairs;
    for (int64_t pair = 0; pair < weights.pairs; pair++, line++) {
        __m512i loaded[4];
        short_ahead(&weights, line, offset, vectors);
        UNROLL for (int v = 0; v < vectors; v += 2) short_words(&weights, line, offset + v * LANES, &loaded[v]);
        UNROLL for (int row = 0; row < rows; row++) {
            __m512i numbers = _mm512_set1_epi32((int32_t)x[row][pair]);
            UNROLL for (int v = 0; v < vectors; v++)
                sums[row][v] = _mm512_dpbf16_ps(sums[row][v], (__m512bh)loaded[v], (__m512bh)numbers);
        }
    }
    int64_t column = piece * weights.block + offset;
    float done[4][4 * LANES];
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int v = 0; v < vectors; v++) _mm512_storeu_ps(&done[row][v * LANES], sums[row][v]);
    int64_t wanted = smaller(product->weight->out_width - column, vectors * LANES);
    for (int row = 0; row < rows; row++) store_sums(product, first_row + row, column, done[row], wanted);
}

INLINE void short_columns(const Product *product, int64_t piece, int64_t first_row, int rows) {
    int64_t block = product->weight->block, offset = 0;
    for (; offset + 4 * LANES <= block; offset += 4 * LANES) short_tile(product, piece, offset, first_row, rows, 4);
    for (; offset < block; offset += 2 * LANES) short_tile(product, piece, offset, first_row, rows, 2);
}

void short_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows) {
    switch (rows) {
        case 1: short_columns(product, piece, first_row, 1); break;
        case 2: short_columns(product, piece, first_row, 2); break;
        case 3: short_columns(product, piece, first_row, 3); break;
        default: short_columns(product, piece, first_row, 4); break;
    }
}

#endif

/* ---- making them */

/* place [256]: of each upper byte in the table, or UPPER_BYTES. By the weights of every eighth line. */
static void choose_upper_bytes(const uint16_t *weights, int64_t lines, int64_t width, uint8_t *table, uint8_t *place) {
    int64_t counts[256] = {0};
    for (int64_t line = 0; line < lines; line += 8)
        for (int64_t i = 0; i < width; i++) counts[weights[line * width + i] >> 8]++;
    memset(place, UPPER_BYTES, 256);
    for (int chosen = 0; chosen < UPPER_BYTES; chosen++) {
        int most = -1;
        for (int byte = 0; byte < 256; byte++)
            if (place[byte] == UPPER_BYTES && (most < 0 || counts[byte] > counts[most])) most = byte;
        place[most] = (uint8_t)chosen;
        table[chosen] = (uint8_t)most;
    }
}

/* A strip of 64 weights: 16 bytes are of two vectors by eights in turn, as _mm512_unpacklo_epi8 puts them together.
 * Returns whether all upper bytes have places. */
static int shorten_strip(const uint16_t *weights, const uint8_t *place, uint8_t *lower, uint8_t *places) {
    enum { WEIGHTS = 2 * SHORT_STRIP, HALF = WEIGHTS / 2 };
    uint8_t found[WEIGHTS], most = 0;
    for (int i = 0; i < WEIGHTS; i++) {
        uint16_t weight = weights[i / 16 * 8 + i % 8 + i % 16 / 8 * HALF];
        lower[i] = (uint8_t)weight;
        found[i] = place[weight >> 8];
        most |= found[i];
    }
    for (int i = 0; i < HALF; i++) places[i] = (uint8_t)((found[i] & 0x0f) | found[HALF + i] << 4);
    return most < UPPER_BYTES;
}

static int shorten_line(const uint16_t *weights, int64_t block, const uint8_t *place, uint8_t *to) {
    int is_whole = 1;
    for (int64_t column = 0; column < block; column += SHORT_STRIP)
        is_whole &= shorten_strip(weights + 2 * column, place, to + 2 * column, to + 2 * block + column);
    return is_whole;
}

/* A weight in BFLOAT16_BLOCKS, whose block is a multiple of 32, to `to`, at an address that is a multiple of 64. Returns the
 * bytes that it took, or 0 if `room` bytes are not enough: too many of its lines have other upper bytes. */
EXPORT int64_t vl2_shorten(const Matrix *matrix, uint8_t *to, int64_t room) {
    const uint16_t *weights = matrix->data;
    int64_t block = matrix->block, width = 2 * block, count = short_lines(matrix), num_apart = 0;
    uint8_t place[256], *lines = to + TABLE_BYTES, *is_apart = lines + count * 3 * block, *apart = is_apart + up(count, 64);
    if (apart > to + room) return 0;
    choose_upper_bytes(weights, count, width, to, place);
    for (int64_t line = 0; line < count; line++, weights += width, lines += 3 * block) {
        is_apart[line] = !shorten_line(weights, block, place, lines);
        if (!is_apart[line]) continue;
        uint32_t number = (uint32_t)num_apart++;
        if (apart + 2 * width > to + room) return 0;
        memcpy(lines, &number, sizeof number);
        memcpy(apart, weights, (size_t)(2 * width));
        apart += 2 * width;
    }
    return apart - to;
}

#endif
