/* Vectors of floats, in the vector extension that gcc and clang share; bfloat16 is handled as pairs in 32 bits.
 *
 * Sums are written out in vectors, in an order that depends on their length alone: a compiler may not choose another, and
 * a row has the same bits wherever it lies and whatever is computed beside it. */
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#else
#define LANES 8
#endif

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512BF16__)
#define HAS_BF16_DOT 1
#else
#define HAS_BF16_DOT 0
#endif

enum { BYTES_AHEAD = 16384 };

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));

INLINE Floats load_floats(const float *from) {
    Floats values;
    memcpy(&values, from, sizeof values);
    return values;
}

INLINE Words load_words(const uint32_t *from) {
    Words values;
    memcpy(&values, from, sizeof values);
    return values;
}

/* Asks for what will be read soon after `from`. Weights are read once, one after the other, and faster when asked for: a
 * virtual Xeon's core reads them at 12 GB/s instead of 6. `bytes` are what is read before the next call. */
INLINE void ask_ahead(const void *from, int64_t bytes, int64_t distance) {
    UNROLL for (int64_t line = 0; line < bytes; line += 64)
        __builtin_prefetch((const char *)from + distance + line, 0, 2);
}

INLINE void read_ahead(const void *from, int64_t bytes) { ask_ahead(from, bytes, BYTES_AHEAD); }

INLINE void store_floats(float *to, Floats values) { memcpy(to, &values, sizeof values); }

/* Both halves of pairs of bfloat16: the element at the lower address, and the one behind it. */
INLINE Floats first_of_pairs(Words pairs) { return (Floats)(pairs << 16); }
INLINE Floats second_of_pairs(Words pairs) { return (Floats)(pairs & 0xffff0000u); }

/* By halves: lane by lane it would take longer than a row's products. */
INLINE float sum_floats(Floats values) {
    typedef float Eight __attribute__((vector_size(32)));
    typedef float Four __attribute__((vector_size(16)));
    Eight eight[LANES / 8];
    memcpy(eight, &values, sizeof values);
    if (LANES == 16) eight[0] += eight[LANES / 8 - 1];
    Four four[2];
    memcpy(four, eight, sizeof four);
    four[0] += four[1];
    return (four[0][0] + four[0][2]) + (four[0][1] + four[0][3]);
}

INLINE float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float from_bf16(uint16_t value) { return from_bits((uint32_t)value << 16); }

/* To the nearest, ties to even; NaN stays NaN. */
INLINE uint16_t to_bf16(float value) {
    uint32_t bits = to_bits(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)(value != value ? 0x7fc0u : rounded);
}

/* LANES small integers, widened. gcc makes single elements of what the general form says. */
#if defined(__AVX512F__)
INLINE Words widen_halves(const uint16_t *from) { return (Words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)from)); }
INLINE Words widen_bytes(const uint8_t *from) { return (Words)_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)from)); }
INLINE Floats widen_signed(const int8_t *from) {
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)from)));
}
#elif defined(__AVX2__)
INLINE Words widen_halves(const uint16_t *from) { return (Words)_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)from)); }
INLINE Words widen_bytes(const uint8_t *from) { return (Words)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)from)); }
INLINE Floats widen_signed(const int8_t *from) {
    return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)from)));
}
#else
#define WIDEN(name, From, To)                                          \
    INLINE To name(const From *from) {                                 \
        typedef From Small __attribute__((vector_size(LANES * sizeof(From)))); \
        Small values;                                                  \
        memcpy(&values, from, sizeof values);                          \
        return __builtin_convertvector(values, To);                    \
    }
WIDEN(widen_halves, uint16_t, Words)
WIDEN(widen_bytes, uint8_t, Words)
WIDEN(widen_signed, int8_t, Floats)
#endif

INLINE float value_at(const void *values, int64_t idx, int is_bfloat16) {
    return is_bfloat16 ? from_bf16(((const uint16_t *)values)[idx]) : ((const float *)values)[idx];
}

/* LANES numbers of a float32 or bfloat16 array. */
INLINE Floats values_at(const void *values, int64_t first, int is_bfloat16) {
    if (!is_bfloat16) return load_floats((const float *)values + first);
    return (Floats)(widen_halves((const uint16_t *)values + first) << 16);
}

/* Σ x[i] · values[first + i] */
INLINE float dot_values(const float *x, const void *values, int64_t first, int64_t width, int is_bfloat16) {
    Floats sum = {0}, other = {0};
    int64_t i = 0;
    for (; i + 2 * LANES <= width; i += 2 * LANES) {
        sum += load_floats(x + i) * values_at(values, first + i, is_bfloat16);
        other += load_floats(x + i + LANES) * values_at(values, first + i + LANES, is_bfloat16);
    }
    float total = sum_floats(sum + other);
    for (; i < width; i++) total += x[i] * value_at(values, first + i, is_bfloat16);
    return total;
}

/* e^x to about 1e-7 of it: 2^n by the exponent's bits, and a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' expf).
 * Plain arithmetic, so that compilers make vectors of it. Below -87 the result is that of -87, above 88 that of 88. */
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = __builtin_rintf(x * 1.44269504088896341f);
    float r = __builtin_fmaf(n, 2.12194440e-4f, __builtin_fmaf(n, -0.693359375f, x)); /* ln 2 in two parts */
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * from_bits((uint32_t)((int32_t)n + 127) << 23);
}

#if defined(__AVX512F__)

/* A mask of as many lanes; `count` may be any number. */
INLINE __mmask16 first_lanes(int64_t count) {
    return (__mmask16)(count >= LANES ? 0xffff : count > 0 ? (1u << count) - 1 : 0);
}

/* 2^x to 1e-7 of it for x up to 127; 2^-126 for what is below -126. */
INLINE __m512 power_of_two(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);
    __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF), p = _mm512_set1_ps(1.867130213e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.017030019e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.579991332e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.401644501e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931513118e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, x);
}

/* The same to 8e-5 of it: for what is rounded to bfloat16, whose rounding is 25 times that. */
INLINE __m512 rough_power_of_two(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);
    __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF), p = _mm512_set1_ps(7.802451e-2f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.2606718e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9583353e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.9992522e-1f));
    return _mm512_scalef_ps(p, x);
}

#if HAS_BF16_DOT
INLINE void store_rounded(uint16_t *to, __m512 values) {
    _mm256_storeu_si256((void *)to, (__m256i)_mm512_cvtneps_pbh(values));
}

INLINE void store_both_rounded(uint16_t *to, __m512 first, __m512 second) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}
#endif

/* x / (1 + e^(factor · z)), for what is rounded to bfloat16 */
INLINE __m512 times_sigmoid(__m512 x, __m512 z, float factor) {
    __m512 power = _mm512_min_ps(_mm512_mul_ps(z, _mm512_set1_ps(factor * 1.44269504088896341f)), _mm512_set1_ps(126.0f));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), rough_power_of_two(power)));
}

#endif
