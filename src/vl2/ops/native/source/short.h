/* bfloat16 weights in 12 bits without loss: a trained matrix's weights have few exponents, and 16 of them make up all but
 * one in ten thousand. A line is a pair of inputs of one block of columns, as of BFLOAT16_BLOCKS: the signs and mantissas of
 * its 2 · block weights, a byte each, then their exponents' places in the table, four bits each. A line with any other
 * exponent is kept as it was, apart, and begins with its number there. So products have the bits that they would have.
 *
 * Everything lies behind `data`: the table, the lines [blocks, pairs, 3 · block], which of them are apart, those lines. */
#pragma once

#include "product.h"

#if HAS_BF16_DOT && !HAS_AMX
#define HAS_SHORT 1

enum { EXPONENTS = 16, TABLE_BYTES = 64 };

typedef struct {
    const uint16_t *exponents; /* [32]: the 16 twice, where bfloat16 has its exponent */
    const uint8_t *lines, *is_apart;
    const uint32_t *apart; /* [number, block] pairs */
    int64_t block, pairs;
} Short;

INLINE int64_t short_lines(const Matrix *matrix) {
    return parts_of(matrix->out_width, matrix->block) * (matrix->padded_in / 2);
}

INLINE Short short_of(const Matrix *matrix) {
    const uint8_t *data = matrix->data, *lines = data + TABLE_BYTES;
    int64_t count = short_lines(matrix);
    const uint8_t *is_apart = lines + count * 3 * matrix->block;
    return (Short){(const uint16_t *)(const void *)data, lines, is_apart,
                   (const uint32_t *)(const void *)(is_apart + up(count, 64)), matrix->block, matrix->padded_in / 2};
}

/* 16 columns of a line, from `column` of its block on, as pairs of bfloat16. */
INLINE __m512i short_words(const Short *from, int64_t line, int64_t column, __m512i exponents) {
    const uint8_t *own = from->lines + line * 3 * from->block;
    const __m512i sign_and_mantissa = _mm512_set1_epi16((short)0x807f), places = _mm512_set1_epi32(0x000f000f);
    __m512i values = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)(own + 2 * column)));
    __m512i place = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(own + 2 * from->block + column)));
    place = _mm512_ternarylogic_epi32(place, _mm512_slli_epi32(place, 12), places, 0xa8); /* (a | b) & c */
    __m512i exponent = _mm512_permutexvar_epi16(place, exponents);
    return _mm512_ternarylogic_epi32(values, sign_and_mantissa, exponent, 0xea); /* (a & b) | c */
}

INLINE const uint32_t *line_apart(const Short *from, int64_t line) {
    uint32_t number;
    memcpy(&number, from->lines + line * 3 * from->block, sizeof number);
    return from->apart + (int64_t)number * from->block;
}

/* A strip of 32 columns from `column` of the matrix on, as it was: to [in_width / 2, 32] pairs. */
void short_unpack(const Matrix *matrix, int64_t column, uint32_t *to);

#else
#define HAS_SHORT 0
#endif
