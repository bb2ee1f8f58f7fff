#include "engine.h"
#include "product_pieces.h"
#include "short.h"

#if HAS_SHORT

/* ---- products */

INLINE void short_tile(const Product *product, int64_t piece, int64_t offset, int64_t first_row, int rows, int vectors) {
    const Short weights = short_of(product->weight);
    const __m512i exponents = _mm512_loadu_si512(weights.exponents);
    const uint32_t *x[4];
    __m512 sums[4][4];
    UNROLL for (int row = 0; row < rows; row++) {
        x[row] = (const uint32_t *)(const void *)operand_row(product, first_row + row);
        UNROLL for (int v = 0; v < vectors; v++) sums[row][v] = _mm512_setzero_ps();
    }
    int64_t line = piece * weights.pairs;
    for (int64_t pair = 0; pair < weights.pairs; pair++, line++) {
        __m512i loaded[4];
        read_ahead(weights.lines + line * 3 * weights.block, 3 * LANES * vectors);
        if (__builtin_expect(weights.is_apart[line], 0)) {
            const uint32_t *apart = line_apart(&weights, line) + offset;
            UNROLL for (int v = 0; v < vectors; v++) loaded[v] = _mm512_loadu_si512(apart + v * LANES);
        } else {
            UNROLL for (int v = 0; v < vectors; v++)
                loaded[v] = short_words(&weights, line, offset + v * LANES, exponents);
        }
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

void short_unpack(const Matrix *matrix, int64_t column, uint32_t *to) {
    const Short from = short_of(matrix);
    const __m512i exponents = _mm512_loadu_si512(from.exponents);
    int64_t line = column / from.block * from.pairs, end = line + matrix->in_width / 2, offset = column % from.block;
    for (; line < end; line++)
        for (int64_t v = 0; v < 2; v++, to += LANES) {
            int64_t first = offset + v * LANES;
            __m512i words = from.is_apart[line] ? _mm512_loadu_si512(line_apart(&from, line) + first)
                                                : short_words(&from, line, first, exponents);
            _mm512_storeu_si512(to, words);
        }
}

/* ---- making them */

INLINE int exponent_of(uint16_t weight) { return weight >> 7 & 0xff; }

/* place [256]: of each exponent in the table, or EXPONENTS. By the weights of every eighth line. */
static void choose_exponents(const uint16_t *weights, int64_t lines, int64_t width, uint16_t *table, uint8_t *place) {
    int64_t counts[256] = {0};
    for (int64_t line = 0; line < lines; line += 8)
        for (int64_t i = 0; i < width; i++) counts[exponent_of(weights[line * width + i])]++;
    memset(place, EXPONENTS, 256);
    for (int chosen = 0; chosen < EXPONENTS; chosen++) {
        int most = -1;
        for (int exponent = 0; exponent < 256; exponent++)
            if (place[exponent] == EXPONENTS && (most < 0 || counts[exponent] > counts[most])) most = exponent;
        place[most] = (uint8_t)chosen;
        table[chosen] = table[chosen + EXPONENTS] = (uint16_t)(most << 7);
    }
}

/* Returns whether all exponents have places. */
static int shorten_line(const uint16_t *weights, int64_t block, const uint8_t *place, uint8_t *to) {
    int is_whole = 1;
    for (int64_t i = 0; i < 2 * block; i++) to[i] = (uint8_t)((weights[i] >> 8 & 0x80) | (weights[i] & 0x7f));
    for (int64_t i = 0; i < block; i++) {
        uint8_t first = place[exponent_of(weights[2 * i])], second = place[exponent_of(weights[2 * i + 1])];
        is_whole &= first < EXPONENTS && second < EXPONENTS;
        to[2 * block + i] = (uint8_t)(first | second << 4);
    }
    return is_whole;
}

/* A weight in BFLOAT16_BLOCKS, whose block is a multiple of 32, to `to`, at an address that is a multiple of 64. Returns the
 * bytes that it took, or 0 if `room` bytes are not enough: too many of its lines have other exponents. */
EXPORT int64_t vl2_shorten(const Matrix *matrix, uint8_t *to, int64_t room) {
    const uint16_t *weights = matrix->data;
    int64_t block = matrix->block, width = 2 * block, count = short_lines(matrix), num_apart = 0;
    uint8_t place[256], *lines = to + TABLE_BYTES, *is_apart = lines + count * 3 * block, *apart = is_apart + up(count, 64);
    if (apart > to + room) return 0;
    choose_exponents(weights, count, width, (uint16_t *)(void *)to, place);
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
