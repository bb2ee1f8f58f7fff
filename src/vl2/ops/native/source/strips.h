/* Products of prompts: up to 32 rows of bfloat16 with strips of 32 columns of a weight in BFLOAT16_BLOCKS, two strips at
 * once. Sums are float32; a row's do not depend on the rows beside it. */
#pragma once

#include "amx.h"
#include "product.h"

#if HAS_BF16_DOT

enum { MOST_ROWS = 32, STRIP = 2 * LANES, WIDE = 2 * STRIP };

/* Two strips, anywhere in one weight, whose blocks are whole strips. */
typedef struct {
    const uint32_t *at[2]; /* their first pairs of inputs */
    int64_t block;         /* words from one pair to the next */
} Strips;

INLINE const uint32_t *strip_at(const Matrix *matrix, int64_t column) {
    int64_t in_block = column % matrix->block;
    return (const uint32_t *)matrix->data + (column - in_block) * (matrix->padded_in / 2) + in_block;
}

INLINE Strips strips_at(const Matrix *matrix, int64_t first, int64_t second) {
    return (Strips){{strip_at(matrix, first), strip_at(matrix, second)}, matrix->block};
}

typedef struct {
    const uint16_t *x; /* [rows, width], rows `stride` numbers apart */
    int64_t stride, width, rows;
    Strips strips;
    float *sums;         /* [rows, WIDE] */
    Strips next;         /* what is multiplied after this, as wide: */
    int64_t part, parts; /* a part of it is asked for meanwhile */
} StripProduct;

#if HAS_AMX

INLINE void strips_begin(int64_t rows) { tiles_begin(rows); }
INLINE void strips_end(void) { tiles_end(); }

/* The next strip's lines of one step that are this part's, into the second cache. */
INLINE void ask_for(const StripProduct *own, int strip, int64_t step) {
    int64_t block = own->next.block, end = (own->part + 1) * TILE_ROWS / own->parts;
    const uint32_t *tile = own->next.at[strip] + step * TILE_ROWS * block;
    for (int64_t line = own->part * TILE_ROWS / own->parts; line < end; line++) {
        _mm_prefetch((const char *)(tile + line * block), _MM_HINT_T1);
        _mm_prefetch((const char *)(tile + line * block + LANES), _MM_HINT_T1);
    }
}

/* 17 to 32 rows and one strip, in tiles as `tiles_begin` shapes them. */
INLINE void multiply_one(const StripProduct *own, int strip) {
    const char *x = (const char *)own->x, *rest = x + TILE_ROWS * 2 * own->stride;
    const uint32_t *weights = own->strips.at[strip];
    int64_t x_bytes = 2 * own->stride, bytes = 4 * own->strips.block, steps = own->width / TILE_NUMBERS;
    tiles_zero();
    for (int64_t step = 0; step < steps; step++, weights += TILE_ROWS * own->strips.block) {
        ask_for(own, strip, step);
        _tile_loadd(4, x + step * TILE_BYTES, x_bytes);
        _tile_loadd(6, weights, bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, weights + LANES, bytes);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, rest + step * TILE_BYTES, x_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    tiles_store_many(own->sums + strip * STRIP, WIDE, 2);
}

/* Up to 16 rows and both strips. */
INLINE void multiply_both(const StripProduct *own) {
    const uint32_t *first = own->strips.at[0], *second = own->strips.at[1];
    int64_t x_bytes = 2 * own->stride, bytes = 4 * own->strips.block, steps = own->width / TILE_NUMBERS, at = 0;
    tiles_zero();
    for (int64_t step = 0; step < steps; step++, at += TILE_ROWS * own->strips.block) {
        ask_for(own, 0, step);
        ask_for(own, 1, step);
        _tile_loadd(4, (const char *)own->x + step * TILE_BYTES, x_bytes);
        _tile_loadd(5, first + at, bytes);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, first + at + LANES, bytes);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, second + at, bytes);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, second + at + LANES, bytes);
        _tile_dpbf16ps(3, 4, 5);
    }
    tiles_store_few(own->sums, WIDE, 4);
}

static void multiply_strips(const StripProduct *own) {
    if (own->rows > TILE_ROWS) {
        multiply_one(own, 0);
        multiply_one(own, 1);
    } else {
        multiply_both(own);
    }
}

#else

enum { DOT_ROWS = 6 }; /* whose sums, times four, leave registers for weights */

INLINE void strips_begin(int64_t rows) { (void)rows; }
INLINE void strips_end(void) {}

INLINE void multiply_rows(const StripProduct *own, int64_t first_row, int rows) {
    const uint32_t *x = (const uint32_t *)(const void *)(own->x + first_row * own->stride);
    const uint32_t *first = own->strips.at[0], *second = own->strips.at[1];
    int64_t pairs = own->width / 2, stride = own->stride / 2;
    __m512 sums[DOT_ROWS][4];
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int v = 0; v < 4; v++) sums[row][v] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < pairs; pair++, first += own->strips.block, second += own->strips.block) {
        __m512i weights[4] = {_mm512_loadu_si512(first), _mm512_loadu_si512(first + LANES),
                              _mm512_loadu_si512(second), _mm512_loadu_si512(second + LANES)};
        UNROLL for (int row = 0; row < rows; row++) {
            __m512i numbers = _mm512_set1_epi32((int32_t)x[row * stride + pair]);
            UNROLL for (int v = 0; v < 4; v++)
                sums[row][v] = _mm512_dpbf16_ps(sums[row][v], (__m512bh)numbers, (__m512bh)weights[v]);
        }
    }
    float *to = own->sums + first_row * WIDE;
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int v = 0; v < 4; v++) _mm512_storeu_ps(to + row * WIDE + v * LANES, sums[row][v]);
}

static void multiply_strips(const StripProduct *own) {
    int64_t row = 0;
    for (; row + DOT_ROWS <= own->rows; row += DOT_ROWS) multiply_rows(own, row, DOT_ROWS);
    switch (own->rows - row) {
        case 1: multiply_rows(own, row, 1); break;
        case 2: multiply_rows(own, row, 2); break;
        case 3: multiply_rows(own, row, 3); break;
        case 4: multiply_rows(own, row, 4); break;
        case 5: multiply_rows(own, row, 5); break;
        default: break;
    }
}

#endif

#endif
