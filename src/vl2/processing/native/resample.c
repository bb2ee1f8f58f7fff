/* Scaling of 8-bit RGB by a filter, one axis a call: Pillow's arithmetic, many numbers at a time. For AVX2.
 *
 * An output is the sum of weights × inputs, plus a half, all in whole numbers of 32 bits; its upper bits are the pixel.
 * Sums of whole numbers do not depend on their order, so the pixels are Pillow's to the bit. Source:
 * ImagingResampleHorizontal_8bpc and ImagingResampleVertical_8bpc of Pillow's libImaging/Resample.c.
 *
 * pictures            rows of pixels of 3 bytes, `*_stride` bytes from one row to the next
 * bounds [out, 2]     the first input of each output, and how many there are
 * weights [out, taps] in units of 2^-22; 0 beyond a bound's number; `taps` is even
 */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define PRECISION_BITS (32 - 8 - 2)
#define HALF (1 << (PRECISION_BITS - 1))
#define LOW_BITS 11  /* of a weight: both of its parts are numbers of 16 bits */
#define BLOCK 4      /* rows that share each weight */
#define READ_BYTES 16
#define PIXEL 3

/* Eight sums → their pixels, in the lower four bytes of each half. */
static inline __m256i pixels_of(__m256i sums) {
    const __m256i values = _mm256_srai_epi32(sums, PRECISION_BITS);
    const __m256i shorts = _mm256_packs_epi32(values, values);
    return _mm256_packus_epi16(shorts, shorts);
}

/* [r0 g0 b0 r1 g1 b1 …] of two rows → numbers of 16 bits [r0 r1 g0 g1 b0 b1 0 0] of each. */
static inline __m256i two_pixels(const uint8_t *first, const uint8_t *second) {
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m128i low = _mm_loadu_si128((const __m128i *)first), high = _mm_loadu_si128((const __m128i *)second);
    return _mm256_shuffle_epi8(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1), order);
}

static inline __m256i pair_of(const int16_t *parts) {
    int32_t both;
    memcpy(&both, parts, sizeof both);
    return _mm256_set1_epi32(both);
}

static inline void put_pixels(__m256i sums, uint8_t *first, uint8_t *second) {
    const __m256i pixels = pixels_of(sums);
    const uint32_t low = (uint32_t)_mm256_extract_epi32(pixels, 0), high = (uint32_t)_mm256_extract_epi32(pixels, 4);
    memcpy(first, &low, PIXEL);
    memcpy(second, &high, PIXEL);
}

static inline __m256i whole_sums(__m256i high, __m256i low) {
    return _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(high, LOW_BITS), low), _mm256_set1_epi32(HALF));
}

/* Each row is read up to READ_BYTES - PIXEL bytes beyond its end. */
static void scale_block(const uint8_t *const in[BLOCK], uint8_t *const out[BLOCK], int64_t out_width,
                        const int32_t *bounds, const int16_t *upper, const int16_t *lower, int64_t taps) {
    for (int64_t x = 0; x < out_width; x++, upper += taps, lower += taps) {
        const int64_t start = PIXEL * (int64_t)bounds[2 * x], num = bounds[2 * x + 1];
        __m256i high_a = _mm256_setzero_si256(), low_a = high_a, high_b = high_a, low_b = high_a;
        for (int64_t tap = 0; tap < num; tap += 2) {
            const int64_t at = start + PIXEL * tap;
            const __m256i up = pair_of(upper + tap), down = pair_of(lower + tap);
            const __m256i a = two_pixels(in[0] + at, in[1] + at), b = two_pixels(in[2] + at, in[3] + at);
            high_a = _mm256_add_epi32(high_a, _mm256_madd_epi16(a, up));
            low_a = _mm256_add_epi32(low_a, _mm256_madd_epi16(a, down));
            high_b = _mm256_add_epi32(high_b, _mm256_madd_epi16(b, up));
            low_b = _mm256_add_epi32(low_b, _mm256_madd_epi16(b, down));
        }
        put_pixels(whole_sums(high_a, low_a), out[0] + PIXEL * x, out[1] + PIXEL * x);
        put_pixels(whole_sums(high_b, low_b), out[2] + PIXEL * x, out[3] + PIXEL * x);
    }
}

/* Rows `first` … `end` of `in`, which has `in_rows` of them, each scaled to `out_width` pixels.
 *
 * upper, lower [out, taps]: the weights' parts, upper · 2^11 + lower. `spare` holds BLOCK rows of `in`, and READ_BYTES
 * more for each: where those that are read beyond a row's end do not belong to the picture. */
EXPORT void vl2_scale_rows(const uint8_t *in, int64_t in_width, int64_t in_rows, uint8_t *out, int64_t out_width,
                           int64_t first, int64_t end, const int32_t *bounds, const int16_t *upper,
                           const int16_t *lower, int64_t taps, uint8_t *spare) {
    const int64_t row_bytes = PIXEL * in_width, spare_bytes = row_bytes + READ_BYTES;
    for (int64_t row = first; row < end; row += BLOCK) {
        const uint8_t *from[BLOCK];
        uint8_t *to[BLOCK];
        for (int64_t i = 0; i < BLOCK; i++) {
            const int64_t one = row + i < end ? row + i : end - 1; /* the last one again, to the same pixels */
            from[i] = in + one * row_bytes;
            to[i] = out + one * PIXEL * out_width;
            if ((in_rows - one) * row_bytes < spare_bytes) from[i] = memcpy(spare + i * spare_bytes, from[i], row_bytes);
        }
        scale_block(from, to, out_width, bounds, upper, lower, taps);
    }
}

/* Pixels of four bytes, the last of which says nothing, as Pillow holds them → of three. */
EXPORT void vl2_pack(const uint8_t *in, uint8_t *out, int64_t pixels) {
    const __m128i order = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    int64_t i = 0;
    for (; i + 8 <= pixels; i += 4) { /* four a time; four bytes too many are written, of those that come next */
        const __m128i four = _mm_loadu_si128((const __m128i *)(in + 4 * i));
        _mm_storeu_si128((__m128i *)(out + PIXEL * i), _mm_shuffle_epi8(four, order));
    }
    for (; i < pixels; i++) memcpy(out + PIXEL * i, in + 4 * i, PIXEL);
}

static inline __m256i eight(const uint8_t *at) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)at)); }

/* Output rows `first` … `end`, `row_bytes` bytes of each; `in` and `out` are of the whole picture. */
EXPORT void vl2_scale_columns(const uint8_t *in, uint8_t *out, int64_t row_bytes, int64_t first, int64_t end,
                              const int32_t *bounds, const int32_t *weights, int64_t taps) {
    for (int64_t y = first; y < end; y++) {
        const uint8_t *from = in + bounds[2 * y] * row_bytes;
        const int64_t num = bounds[2 * y + 1];
        const int32_t *own = weights + y * taps;
        uint8_t *to = out + y * row_bytes;
        int64_t x = 0;
        for (; x + 32 <= row_bytes; x += 32) {
            __m256i sums[4];
            for (int i = 0; i < 4; i++) sums[i] = _mm256_set1_epi32(HALF);
            for (int64_t tap = 0; tap < num; tap++) {
                const uint8_t *at = from + tap * row_bytes + x;
                const __m256i weight = _mm256_set1_epi32(own[tap]);
                for (int i = 0; i < 4; i++)
                    sums[i] = _mm256_add_epi32(sums[i], _mm256_mullo_epi32(eight(at + 8 * i), weight));
            }
            for (int i = 0; i < 4; i++) {
                const __m256i pixels = pixels_of(sums[i]);
                const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(pixels),
                                                        _mm256_extracti128_si256(pixels, 1));
                _mm_storel_epi64((__m128i *)(to + x + 8 * i), both);
            }
        }
        for (; x < row_bytes; x++) {
            int32_t sum = HALF;
            for (int64_t tap = 0; tap < num; tap++) sum += from[tap * row_bytes + x] * own[tap];
            sum >>= PRECISION_BITS;
            to[x] = (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
        }
    }
}
