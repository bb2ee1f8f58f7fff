/* 4-bit weights as bytes that meet four inputs of a row at once; a block has 64 columns. */
#pragma once

#include "bytes.h"

#if HAS_BYTE_DOT

typedef struct {
    __m512i columns[4]; /* 16 columns each, of every one four codes */
} Quads;

/* Codes of four inputs lie one behind the other, 32 bytes each. */
INLINE Quads load_quads(const uint8_t *codes) {
    const __m512i first = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
    const __m512i turned = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(4)), low = _mm512_set1_epi8(15);
    ask_ahead(codes, 128, FEW_BITS_AHEAD);
    __m512i before = _mm512_loadu_si512(codes), after = _mm512_loadu_si512(codes + 64);
    __m512i left = _mm512_shuffle_epi8(_mm512_permutex2var_epi32(before, first, after), turned);
    __m512i right = _mm512_shuffle_epi8(_mm512_permutex2var_epi32(before, second, after), turned);
    return (Quads){{_mm512_and_si512(left, low), _mm512_and_si512(right, low),
                    _mm512_and_si512(_mm512_srli_epi16(left, 4), low), _mm512_and_si512(_mm512_srli_epi16(right, 4), low)}};
}

/* Inputs that are added up before they meet a scale and a step. */
INLINE int64_t inputs_at_once(const Matrix *matrix) { return smaller(matrix->group, STEP_INPUTS); }

/* What codes, which are 8 more than their weights, are too much. */
INLINE int32_t offset_of(const ByteRow *x, int64_t begin, int64_t inputs) {
    int32_t sum = 0;
    for (int64_t i = begin / SUM_INPUTS; i < (begin + inputs) / SUM_INPUTS; i++) sum += x->sums[i];
    return sum;
}

#endif
