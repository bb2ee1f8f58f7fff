/* bfloat16 weights in 12 bits without loss: the upper byte of one is its sign and all but the lowest bit of its exponent, and
 * of those a trained matrix's weights have few: 16 make up all but one or two in ten thousand. A line is a pair of inputs of
 * one block of columns, as of BFLOAT16_BLOCKS: the lower bytes of its 2 · block weights, then the upper ones' places in the
 * table, four bits each. A line with any other upper byte is kept as it was, apart, and begins with its number there. So
 * products have the bits that they would have.
 *
 * Strips of 32 columns have 64 bytes of the first kind and 32 of the second, in the order in which short_words takes them
 * apart. Everything lies behind `data`: the table, the lines [blocks, pairs, 3 · block], which of them are apart, those lines. */
#pragma once

#include "product.h"

#if HAS_BF16_DOT

enum { UPPER_BYTES = 16, TABLE_BYTES = 64, SHORT_STRIP = 2 * LANES };

typedef struct {
    __m512i table; /* four times */
    const uint8_t *lines, *is_apart;
    const uint32_t *apart; /* [number, block] pairs */
    int64_t block, pairs;
} Short;

INLINE int64_t short_lines(const Matrix *matrix) {
    return parts_of(matrix->out_width, matrix->block) * (matrix->padded_in / 2);
}

INLINE Short short_of(const Matrix *matrix) {
    const uint8_t *table = matrix->data, *lines = table + TABLE_BYTES;
    int64_t count = short_lines(matrix);
    const uint8_t *is_apart = lines + count * 3 * matrix->block;
    return (Short){_mm512_broadcast_i32x4(_mm_loadu_si128((const void *)table)), lines, is_apart,
                   (const uint32_t *)(const void *)(is_apart + up(count, 64)), matrix->block, matrix->padded_in / 2};
}

/* Lower bytes, and places of the upper ones, of a line's strip from `column` of its block on. */
INLINE const uint8_t *short_lower(const Short *from, int64_t line, int64_t column) {
    return from->lines + line * 3 * from->block + 2 * column;
}

INLINE const uint8_t *short_places(const Short *from, int64_t line, int64_t column) {
    return from->lines + line * 3 * from->block + 2 * from->block + column;
}

INLINE const uint32_t *line_apart(const Short *from, int64_t line) {
    uint32_t number;
    memcpy(&number, from->lines + line * 3 * from->block, sizeof number);
    return from->apart + (int64_t)number * from->block;
}

/* Asks for a line that is read soon after this one, and for what is known of it. */
INLINE void short_ahead(const Short *from, int64_t line, int64_t column, int vectors) {
    read_ahead(short_lower(from, line, column), 3 * LANES * vectors);
    __builtin_prefetch(from->is_apart + line + BYTES_AHEAD / (3 * from->block), 0, 2);
}

/* A line's strip from `column` of its block on, as pairs of bfloat16. One that is apart asks for the next such. */
INLINE void short_words(const Short *from, int64_t line, int64_t column, __m512i words[2]) {
    if (__builtin_expect(from->is_apart[line], 0)) {
        const uint32_t *apart = line_apart(from, line) + column;
        for (int64_t next = 0; next < from->block; next += LANES) __builtin_prefetch(apart + from->block - column + next, 0, 2);
        words[0] = _mm512_loadu_si512(apart), words[1] = _mm512_loadu_si512(apart + LANES);
        return;
    }
    const __m512i halves = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4), place = _mm512_set1_epi8(0x0f);
    __m512i lower = _mm512_loadu_si512(short_lower(from, line, column));
    __m512i places = _mm512_broadcast_i64x4(_mm256_loadu_si256((const void *)short_places(from, line, column)));
    places = _mm512_and_si512(_mm512_srlv_epi64(places, halves), place);
    __m512i upper = _mm512_shuffle_epi8(from->table, places);
    words[0] = _mm512_unpacklo_epi8(lower, upper), words[1] = _mm512_unpackhi_epi8(lower, upper);
}

/* `count` pairs of inputs of a strip, from `line` and `column` of its block on, as they were: to [count, 32] pairs. */
INLINE void short_unpack(const Short *from, int64_t line, int64_t column, int64_t count, uint32_t *to) {
    for (int64_t end = line + count; line < end; line++, to += SHORT_STRIP) {
        __m512i words[2];
        short_words(from, line, column, words);
        _mm512_store_si512(to, words[0]);
        _mm512_store_si512(to + LANES, words[1]);
    }
}

#endif
