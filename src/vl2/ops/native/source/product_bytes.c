/* Products with weights in few bits on rows of 16-bit numbers (bytes.h), a few rows at once. */
#include <math.h>

#include "bytes.h"
#include "product_pieces.h"
#include "quads.h"

#if HAS_BYTE_DOT

enum { LARGEST = 127 * 256 + 127, VECTORS_OF_STEP = STEP_INPUTS / LANES };

/* ---- rows */

INLINE __m512 load_some(const float *values, int64_t first, int64_t width) {
    return _mm512_maskz_loadu_ps(first_lanes(width - first), values + first);
}

/* The largest size among the numbers of a block; NaN if there is one, as its bits are the largest. */
INLINE float largest_size(const __m512 *numbers) {
    __m512i most = _mm512_setzero_si512(), size = _mm512_set1_epi32(0x7fffffff);
    UNROLL for (int v = 0; v < VECTORS_OF_STEP; v++)
        most = _mm512_max_epi32(most, _mm512_and_si512((__m512i)numbers[v], size));
    return from_bits((uint32_t)_mm512_reduce_max_epi32(most));
}

/* Numbers of 32 bits, 16 each, as bytes in order; what is above a byte's largest number becomes that. */
INLINE __m512i narrow(const __m512i numbers[4]) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i first = _mm512_packs_epi32(numbers[0], numbers[1]), last = _mm512_packs_epi32(numbers[2], numbers[3]);
    return _mm512_permutexvar_epi32(order, _mm512_packs_epi16(first, last));
}

/* The sums of the first and the last eight lanes, times -8, in lanes 0 and 8. */
INLINE __m512i sum_halves(__m512i lanes) {
    __m512i sums = _mm512_add_epi32(lanes, _mm512_shuffle_epi32(lanes, _MM_PERM_CDAB));
    sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, _MM_PERM_BADC));
    sums = _mm512_add_epi32(sums, _mm512_shuffle_i64x2(sums, sums, _MM_PERM_CDAB));
    return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sums, 3));
}

/* 64 numbers from `at` on; returns their sums by fours. */
INLINE __m512i store_numbers(const ByteRow *to, int64_t at, const __m512 *numbers, __m512 factor) {
    const __m512i ones = _mm512_set1_epi8(1), none = _mm512_setzero_si512(), rounding = _mm512_set1_epi32(128);
    __m512i highs[4], lows[4];
    UNROLL for (int v = 0; v < 4; v++) {
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(numbers[v], factor));
        highs[v] = _mm512_srai_epi32(_mm512_add_epi32(whole, rounding), 8);
        lows[v] = _mm512_sub_epi32(whole, _mm512_slli_epi32(highs[v], 8));
    }
    __m512i high = narrow(highs), low = narrow(lows);
    _mm512_store_si512(to->high + at, high);
    _mm512_store_si512(to->low + at, low);
    high = _mm512_slli_epi32(add_bytes(none, ones, high), 8);
    __m512i fours = _mm512_add_epi32(high, add_bytes(none, ones, low));
    _mm512_mask_compressstoreu_epi32(to->sums + at / SUM_INPUTS, 0x0101, sum_halves(fours));
    return fours;
}

void bytes_store(const Operand *operand, int64_t row, const float *values, int64_t width) {
    const ByteRow to = byte_row(operand, row);
    for (int64_t begin = 0, block = 0; begin < width; begin += STEP_INPUTS, block++) {
        __m512 numbers[VECTORS_OF_STEP];
        UNROLL for (int v = 0; v < VECTORS_OF_STEP; v++) numbers[v] = load_some(values, begin + v * LANES, width);
        float largest = largest_size(numbers);
        __m512 factor = _mm512_set1_ps(largest > 1e-30f ? LARGEST / largest : 0.0f);
        __m512i fours = store_numbers(&to, begin, numbers, factor);
        if (begin + 64 < width) fours = _mm512_add_epi32(fours, store_numbers(&to, begin + 64, numbers + 4, factor));
        _mm512_storeu_si512(to.lanes + block * LANES, _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(fours, 7)));
        to.steps[block] = largest < INFINITY ? largest / LARGEST : NAN; /* beside an infinite number no other has a size */
    }
}

/* ---- 4 bits */

INLINE __m512i four_inputs(const int8_t *x) {
    int32_t quad;
    memcpy(&quad, x, sizeof quad);
    return _mm512_set1_epi32(quad);
}

INLINE void int4_block(const Product *product, int64_t piece, int64_t first_row, int rows) {
    const Matrix *matrix = product->weight;
    const int64_t inputs = inputs_at_once(matrix);
    const uint8_t *codes = (const uint8_t *)matrix->data + piece * 32 * matrix->in_width;
    ByteRow x[3];
    Floats totals[3][4];
    UNROLL for (int row = 0; row < rows; row++) {
        x[row] = byte_row(product->operand, product->in_rows[first_row + row]);
        UNROLL for (int v = 0; v < 4; v++) totals[row][v] = (Floats){0};
    }
    for (int64_t begin = 0; begin < matrix->in_width; begin += inputs) {
        __m512i high[3][4], low[3][4];
        UNROLL for (int row = 0; row < rows; row++) {
            __m512i offset = _mm512_set1_epi32(offset_of(&x[row], begin, inputs));
            UNROLL for (int v = 0; v < 4; v++) high[row][v] = _mm512_setzero_si512(), low[row][v] = offset;
        }
        for (int64_t i = begin; i < begin + inputs; i += 4, codes += 128) {
            Quads quads = load_quads(codes);
            UNROLL for (int row = 0; row < rows; row++) {
                __m512i x_high = four_inputs(x[row].high + i), x_low = four_inputs(x[row].low + i);
                UNROLL for (int v = 0; v < 4; v++) {
                    high[row][v] = add_bytes(high[row][v], quads.columns[v], x_high);
                    low[row][v] = add_bytes(low[row][v], quads.columns[v], x_low);
                }
            }
        }
        int64_t scales = begin / matrix->group * matrix->out_width + piece * 64;
        UNROLL for (int v = 0; v < 4; v++) {
            Floats scale = load_scales(matrix, scales + v * LANES);
            UNROLL for (int row = 0; row < rows; row++)
                totals[row][v] = add_scaled(totals[row][v], high[row][v], low[row][v],
                                            scale * x[row].steps[begin / STEP_INPUTS]);
        }
    }
    UNROLL for (int row = 0; row < rows; row++) {
        float done[4 * LANES];
        UNROLL for (int v = 0; v < 4; v++) store_floats(done + v * LANES, totals[row][v]);
        store_sums(product, first_row + row, piece * 64, done, 4 * LANES);
    }
}

void int4_bytes_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows) {
    switch (rows) {
        case 1: int4_block(product, piece, first_row, 1); break;
        case 2: int4_block(product, piece, first_row, 2); break;
        default: int4_block(product, piece, first_row, 3); break;
    }
}

/* ---- 8 bits, in rows */

/* Up to 64 codes, which become bytes without a sign, 128 more than they are. */
INLINE void add_codes(const int8_t *codes, __mmask64 which, const ByteRow *x, int64_t at, int rows, __m512i *high,
                      __m512i *low) {
    __m512i bytes = _mm512_xor_si512(_mm512_maskz_loadu_epi8(which, codes + at), _mm512_set1_epi8((char)0x80));
    UNROLL for (int row = 0; row < rows; row++) {
        high[row] = add_bytes(high[row], bytes, _mm512_load_si512(x[row].high + at));
        low[row] = add_bytes(low[row], bytes, _mm512_load_si512(x[row].low + at));
    }
}

INLINE __mmask64 first_bytes(int64_t count) { return count >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << count) - 1; }

/* Lanes of one column's sums; `lanes` of x is what codes are too much. */
INLINE void int8_column(const int8_t *codes, int64_t width, const ByteRow *x, int rows, Floats *sums) {
    UNROLL for (int row = 0; row < rows; row++) sums[row] = (Floats){0};
    for (int64_t begin = 0, block = 0; begin < width; begin += STEP_INPUTS, block++) {
        __m512i high[4], low[4];
        ask_ahead(codes + begin, STEP_INPUTS, FEW_BITS_AHEAD);
        UNROLL for (int row = 0; row < rows; row++) {
            high[row] = _mm512_setzero_si512();
            low[row] = _mm512_loadu_si512(x[row].lanes + block * LANES);
        }
        if (begin + STEP_INPUTS <= width) {
            add_codes(codes, ~(__mmask64)0, x, begin, rows, high, low);
            add_codes(codes, ~(__mmask64)0, x, begin + 64, rows, high, low);
        } else {
            add_codes(codes, first_bytes(width - begin), x, begin, rows, high, low);
            if (begin + 64 < width) add_codes(codes, first_bytes(width - begin - 64), x, begin + 64, rows, high, low);
        }
        UNROLL for (int row = 0; row < rows; row++)
            sums[row] = add_scaled(sums[row], high[row], low[row], (Floats){0} + x[row].steps[block]);
    }
}

/* The sums of four vectors' lanes. */
INLINE __m128 sum_four(const Floats sums[4]) {
    __m512 a = (__m512)sums[0], b = (__m512)sums[1], c = (__m512)sums[2], d = (__m512)sums[3];
    __m512 first = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 last = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512 all = _mm512_add_ps((__m512)_mm512_unpacklo_pd((__m512d)first, (__m512d)last),
                               (__m512)_mm512_unpackhi_pd((__m512d)first, (__m512d)last));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

INLINE void int8_columns(const Product *product, int64_t piece, int64_t first_row, int rows) {
    const Matrix *matrix = product->weight;
    const int64_t width = matrix->in_width, last = matrix->out_width - 1;
    int64_t column = piece * COLUMNS_OF_ROWS, end = smaller(column + COLUMNS_OF_ROWS, matrix->out_width);
    ByteRow x[4];
    UNROLL for (int row = 0; row < rows; row++) x[row] = byte_row(product->operand, product->in_rows[first_row + row]);
    for (; column < end; column += 4) {
        Floats sums[4][4], of_row[4];
        UNROLL for (int k = 0; k < 4; k++) /* the last one again where there are no more */
            int8_column((const int8_t *)matrix->data + smaller(column + k, last) * width, width, x, rows, sums[k]);
        UNROLL for (int row = 0; row < rows; row++) {
            float done[4];
            UNROLL for (int k = 0; k < 4; k++) of_row[k] = sums[k][row];
            _mm_storeu_ps(done, sum_four(of_row));
            for (int k = 0; k < 4 && column + k < end; k++) done[k] *= value_at(matrix->scales, column + k, 1);
            store_sums(product, first_row + row, column, done, smaller(end - column, 4));
        }
    }
}

void int8_bytes_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows) {
    switch (rows) {
        case 1: int8_columns(product, piece, first_row, 1); break;
        case 2: int8_columns(product, piece, first_row, 2); break;
        case 3: int8_columns(product, piece, first_row, 3); break;
        default: int8_columns(product, piece, first_row, 4); break;
    }
}

#endif
