/* Keys and values of one head as panels of columns, and products of a block of queries with them: on the matrix units
 * where there are such, else by vdpbf16ps. A row's sums do not depend on the rows beside it. */
#pragma once

#include "amx.h"
#include "prompt.h"

#if HAS_BF16_DOT

/* Queries of a block; pairs that are multiplied at once. */
#if HAS_AMX
enum { QUERIES = MOST_TILE_ROWS, STEP = TILE_ROWS };
#else
enum { QUERIES = 12, STEP = 1 };
#endif

/* Columns of a panel, and numbers of a row that lie together where they are multiplied: [width / PANEL][QUERIES][PANEL]. */
enum { PANEL = 2 * LANES, PANEL_PAIRS = PANEL / 2 };

/* Of one head, filled up with zeros. */
typedef struct {
    int64_t positions, pairs;       /* the context in whole panels; its pairs in whole steps */
    int64_t key_pairs, value_width; /* pairs of dim in whole steps; value_dim in whole vectors */
    uint32_t *keys;                 /* [panels of PANEL positions][key_pairs][PANEL] */
    uint32_t *values;               /* [panels of up to PANEL columns][pairs][columns of the panel] */
} Panels;

INLINE Panels panels_of(const PromptAttention *own) {
    return (Panels){.positions = up(own->context, PANEL),
                    .pairs = up((own->context + 1) / 2, STEP),
                    .key_pairs = up(own->dim / 2, STEP),
                    .value_width = up(own->value_dim, LANES)};
}

/* Where the row of a position of the context lies; of what comes after it, anywhere. */
INLINE int64_t row_of(const PromptAttention *own, int64_t position) {
    if (own->pages == NULL || position >= own->context) return position < own->context ? position : 0;
    return own->pages[position / own->page_size] * own->page_size + position % own->page_size;
}

/* `count` pairs of LANES positions' rows, `row` numbers apart, of which some are given; returns where the next ones go. */
INLINE uint32_t *turn_pairs(const uint16_t *from, int64_t row, int64_t count, __mmask16 given, uint32_t *to) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i distances = _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int32_t)row));
    for (int64_t pair = 0; pair < count; pair++, to += PANEL)
        _mm512_store_si512(to, _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), given, distances, from + 2 * pair, 2));
    return to;
}

static void lay_out_keys(const Panels *panels, const PromptAttention *own, int64_t head) {
    int64_t tail = own->tails == NULL ? 0 : own->tail_dim / 2, pairs = own->dim / 2 - tail;
    for (int64_t first = 0; first < panels->positions; first += LANES) {
        int64_t row = row_of(own, first);
        uint32_t *to = panels->keys + first / PANEL * PANEL * panels->key_pairs + first % PANEL;
        __mmask16 given = first_lanes(own->context - first);
        to = turn_pairs(own->keys + row * own->key_row + head * own->key_head, own->key_row, pairs, given, to);
        if (tail > 0) to = turn_pairs(own->tails + row * own->tail_row, own->tail_row, tail, given, to);
        for (int64_t pair = own->dim / 2; pair < panels->key_pairs; pair++, to += PANEL)
            _mm512_store_si512(to, _mm512_setzero_si512());
    }
}

/* Of one position and head: [value_dim]; zeros after the last column and the last position. */
typedef struct {
    const uint16_t *from;
    int64_t width;
} Values;

INLINE Values values_of(const PromptAttention *own, int64_t position, int64_t head) {
    const uint16_t *from = own->values + row_of(own, position) * own->value_row + head * own->value_head;
    return (Values){from, position < own->context ? own->value_dim : 0};
}

/* LANES columns as 32 bits each. */
INLINE __m512i value_words(Values own, int64_t column) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(own.width - column), own.from + column));
}

static void lay_out_values(const Panels *panels, const PromptAttention *own, int64_t head) {
    uint32_t *to = panels->values;
    for (int64_t first = 0; first < panels->value_width; first += PANEL) {
        int64_t end = smaller(first + PANEL, panels->value_width);
        for (int64_t position = 0; position < 2 * panels->pairs; position += 2) {
            Values one = values_of(own, position, head), next = values_of(own, position + 1, head);
            for (int64_t column = first; column < end; column += LANES, to += LANES) {
                __m512i both = _mm512_or_si512(value_words(one, column), _mm512_slli_epi32(value_words(next, column), 16));
                _mm512_store_si512(to, both);
            }
        }
    }
}

/* A block's rows [pairs / PANEL_PAIRS][QUERIES][PANEL_PAIRS] times a panel [pairs][vectors · LANES] → out, or added to it. */
#if HAS_AMX

INLINE void multiply_panel(const uint32_t *x, const uint32_t *panel, int64_t pairs, int vectors, float *out,
                           int64_t out_row, int is_added) {
    if (is_added) tiles_load_many(out, out_row, vectors);
    else tiles_zero();
    tiles_see_stores();
    for (int64_t pair = 0; pair < pairs; pair += STEP)
        tiles_step_many((const char *)(x + pair * QUERIES), TILE_BYTES, panel + pair * vectors * LANES, vectors * LANES,
                        vectors);
    tiles_store_many(out, out_row, vectors);
}

#else

INLINE void multiply_panel(const uint32_t *x, const uint32_t *panel, int64_t pairs, int vectors, float *out,
                           int64_t out_row, int is_added) {
    __m512 sums[QUERIES][2];
    UNROLL for (int row = 0; row < QUERIES; row++)
        UNROLL for (int i = 0; i < vectors; i++)
            sums[row][i] = is_added ? _mm512_load_ps(out + row * out_row + i * LANES) : _mm512_setzero_ps();
    for (int64_t first = 0; first < pairs; first += PANEL_PAIRS, x += QUERIES * PANEL_PAIRS)
        for (int64_t pair = 0; pair < smaller(pairs - first, PANEL_PAIRS); pair++, panel += vectors * LANES) {
            __m512bh columns[2];
            UNROLL for (int i = 0; i < vectors; i++) columns[i] = (__m512bh)_mm512_load_si512(panel + i * LANES);
            UNROLL for (int row = 0; row < QUERIES; row++) {
                __m512bh numbers = (__m512bh)_mm512_set1_epi32((int32_t)x[row * PANEL_PAIRS + pair]);
                UNROLL for (int i = 0; i < vectors; i++)
                    sums[row][i] = _mm512_dpbf16_ps(sums[row][i], numbers, columns[i]);
            }
        }
    UNROLL for (int row = 0; row < QUERIES; row++)
        UNROLL for (int i = 0; i < vectors; i++) _mm512_store_ps(out + row * out_row + i * LANES, sums[row][i]);
}

#endif

#endif
