/* Sums on the matrix units of Intel's processors (AMX), of rows x with weights in BFLOAT16_BLOCKS whose `padded_in` is a
 * multiple of 32: a tile of x is 16 rows of 32 numbers, one of weights 16 pairs of rows by 16 columns.
 *
 * A row's sums do not depend on the rows beside it. They are added up in another order than by vdpbf16ps, so a weight is
 * multiplied by one of the two for all numbers of rows. Linux gives tiles to a process that asks (ops/native/builds.py). */
#pragma once

#include "simd.h"

#if defined(__AMX_BF16__)
#define HAS_AMX 1
#else
#define HAS_AMX 0
#endif

#if HAS_AMX

enum { TILE_ROWS = 16, TILE_NUMBERS = 32, TILE_BYTES = 64, MOST_TILE_ROWS = 2 * TILE_ROWS, STEPS_AHEAD = 4 };

/* Of tiles, as the processor reads it. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileShapes;

/* Before tiles are loaded, and before what they were loaded from is written anew: gcc's intrinsics do not tell it that
 * they read memory, so that it may move stores past them. */
INLINE void tiles_see_stores(void) { __asm__ volatile("" ::: "memory"); }

INLINE void tiles_take(const TileShapes *shapes) {
    __asm__ volatile("" ::"r"(shapes) : "memory"); /* all of it, of which gcc's intrinsic names eight bytes */
    _tile_loadconfig(shapes);
}

INLINE void tiles_configure(const int64_t rows[8]) {
    TileShapes shapes = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        shapes.row_bytes[tile] = TILE_BYTES;
        shapes.rows[tile] = (uint8_t)rows[tile];
    }
    tiles_take(&shapes);
}

/* For up to 16 rows: tiles 0–3 sums of four vectors of columns, 4 x, 5–7 weights. For up to 32: 0, 1 and 2, 3 sums of two
 * vectors for the first 16 rows and for the rest, 4 and 5 x likewise, 6 and 7 weights. */
INLINE void tiles_begin(int64_t rows) {
    int64_t rest = rows - TILE_ROWS;
    if (rest <= 0) tiles_configure((int64_t[]){rows, rows, rows, rows, rows, 16, 16, 16});
    else tiles_configure((int64_t[]){16, 16, rest, rest, 16, rest, 16, 16});
}

/* For up to 16 rows of bytes: tiles 0–3 sums, 4 and 5 x of `inputs` bytes, 6 and 7 weights, four inputs a row. */
INLINE void tiles_configure_bytes(int64_t rows, int64_t inputs) {
    int64_t quads = inputs / 4;
    TileShapes shapes = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        shapes.row_bytes[tile] = (uint16_t)(tile == 4 || tile == 5 ? inputs : TILE_BYTES);
        shapes.rows[tile] = (uint8_t)(tile < 6 ? rows : quads);
    }
    tiles_take(&shapes);
}

/* Idle tiles cost other threads of the core nothing once they are given back. */
INLINE void tiles_end(void) { _tile_release(); }

INLINE void tiles_zero(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* 32 numbers of up to 16 rows of x, a row every `x_bytes`, with `vectors` vectors of columns of weights. */
INLINE void tiles_step_few(const char *x, int64_t x_bytes, const uint32_t *weights, int64_t block, int vectors) {
    _tile_loadd(4, x, x_bytes);
    _tile_loadd(5, weights, 4 * block);
    _tile_dpbf16ps(0, 4, 5);
    if (vectors > 1) {
        _tile_loadd(6, weights + LANES, 4 * block);
        _tile_dpbf16ps(1, 4, 6);
    }
    if (vectors > 2) {
        _tile_loadd(7, weights + 2 * LANES, 4 * block);
        _tile_dpbf16ps(2, 4, 7);
    }
    if (vectors > 3) {
        _tile_loadd(5, weights + 3 * LANES, 4 * block);
        _tile_dpbf16ps(3, 4, 5);
    }
}

/* Of 17 to 32 rows, one or two vectors of columns. */
INLINE void tiles_step_many(const char *x, int64_t x_bytes, const uint32_t *weights, int64_t block, int vectors) {
    _tile_loadd(4, x, x_bytes);
    _tile_loadd(6, weights, 4 * block);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, x + TILE_ROWS * x_bytes, x_bytes);
    _tile_dpbf16ps(2, 5, 6);
    if (vectors > 1) {
        _tile_loadd(7, weights + LANES, 4 * block);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
}

/* Up to 16 rows: x [rows, 32 · steps]. Weights come from memory, which is asked for them four steps ahead; fewer or more
 * read B's weights 8 % slower. */
INLINE void tiles_add_few(const char *x, int64_t x_bytes, const uint32_t *weights, int64_t block, int64_t steps,
                          int vectors) {
    tiles_see_stores();
    for (int64_t step = 0; step < steps; step++, weights += TILE_ROWS * block) {
        for (int64_t line = 0; line < TILE_ROWS * vectors; line++)
            _mm_prefetch((const char *)(weights + STEPS_AHEAD * TILE_ROWS * block) + line * 64, _MM_HINT_T0);
        tiles_step_few(x + step * TILE_BYTES, x_bytes, weights, block, vectors);
    }
}

/* Sums of up to 16 rows, [rows, vectors · 16], a row every `out_row` floats; and how they are taken up again. */
INLINE void tiles_store_few(float *out, int64_t out_row, int vectors) {
    _tile_stored(0, out, 4 * out_row);
    if (vectors > 1) _tile_stored(1, out + LANES, 4 * out_row);
    if (vectors > 2) _tile_stored(2, out + 2 * LANES, 4 * out_row);
    if (vectors > 3) _tile_stored(3, out + 3 * LANES, 4 * out_row);
}

INLINE void tiles_load_few(const float *from, int64_t from_row, int vectors) {
    tiles_see_stores();
    _tile_loadd(0, from, 4 * from_row);
    if (vectors > 1) _tile_loadd(1, from + LANES, 4 * from_row);
    if (vectors > 2) _tile_loadd(2, from + 2 * LANES, 4 * from_row);
    if (vectors > 3) _tile_loadd(3, from + 3 * LANES, 4 * from_row);
}

/* 17 to 32 rows. */
INLINE void tiles_add_many(const char *x, int64_t x_bytes, const uint32_t *weights, int64_t block, int64_t steps,
                           int vectors) {
    tiles_see_stores();
    for (int64_t step = 0; step < steps; step++, weights += TILE_ROWS * block)
        tiles_step_many(x + step * TILE_BYTES, x_bytes, weights, block, vectors);
}

/* Sums of 17 to 32 rows, likewise, and how they are taken up again. */
INLINE void tiles_store_many(float *out, int64_t out_row, int vectors) {
    _tile_stored(0, out, 4 * out_row);
    _tile_stored(2, out + TILE_ROWS * out_row, 4 * out_row);
    if (vectors > 1) {
        _tile_stored(1, out + LANES, 4 * out_row);
        _tile_stored(3, out + TILE_ROWS * out_row + LANES, 4 * out_row);
    }
}

INLINE void tiles_load_many(const float *from, int64_t from_row, int vectors) {
    tiles_see_stores();
    _tile_loadd(0, from, 4 * from_row);
    _tile_loadd(2, from + TILE_ROWS * from_row, 4 * from_row);
    if (vectors > 1) {
        _tile_loadd(1, from + LANES, 4 * from_row);
        _tile_loadd(3, from + TILE_ROWS * from_row + LANES, 4 * from_row);
    }
}

#endif
