/* Products with 4-bit weights on matrix units: codes become bfloat16 on their way into a tile. */
#include "amx.h"
#include "product_pieces.h"

#if HAS_AMX

enum { COLUMNS = 64, CODE_OFFSET = 24 }; /* of a block; what a code is more than its weight, see decode_pairs */

typedef uint32_t Pairs[4][TILE_ROWS * LANES]; /* of 32 inputs, in four vectors of columns */

typedef struct {
    _Alignas(64) Pairs weights[2]; /* of this step and the next: tiles wait for what was just stored */
    _Alignas(64) uint16_t ones[TILE_ROWS * TILE_NUMBERS];
    _Alignas(64) float sums[5][TILE_ROWS][LANES]; /* of the columns; [4] of x itself */
    _Alignas(64) float totals[TILE_ROWS][COLUMNS];
} Room;

/* Codes of two inputs and 64 columns as four vectors of pairs: columns of the first half in the first two, by fours in turn, of
 * the second half in the others. A code becomes 16 + code, which is a bfloat16 with the code in the middle of its fraction;
 * that is CODE_OFFSET more than the weight, whose code is 8 for 0. */
INLINE void decode_pairs(const uint8_t *codes, uint32_t *first_pairs) {
    const __m512i beside = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7); /* eight columns of one input, then of the other */
    const __m512i fours = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 8, 8, 1, 1, 9, 9, 2, 2, 10, 10, 3, 3, 11, 11));
    const __m512i place = _mm512_set1_epi16(0x78), sixteen = _mm512_set1_epi16(0x4180);
    __m512i bytes = _mm512_permutexvar_epi64(beside, _mm512_loadu_si512(codes));
    __m512i first = _mm512_shuffle_epi8(bytes, fours);
    __m512i second = _mm512_shuffle_epi8(_mm512_srli_epi64(bytes, 32), fours);
    __m512i codes_in_place[4] = {_mm512_slli_epi16(first, 3), _mm512_slli_epi16(second, 3), _mm512_srli_epi16(first, 1),
                                 _mm512_srli_epi16(second, 1)};
    UNROLL for (int v = 0; v < 4; v++) /* (code & place) | sixteen */
        _mm512_store_si512(first_pairs + v * TILE_ROWS * LANES,
                           _mm512_ternarylogic_epi32(codes_in_place[v], place, sixteen, 0xea));
}

/* Two vectors whose columns lie by fours in turn, in order. */
INLINE void sort_columns(Floats *first, Floats *second) {
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_or_si512(low, _mm512_set1_epi32(8));
    __m512 unsorted = (__m512)*first;
    *first = (Floats)_mm512_permutex2var_ps(unsorted, low, (__m512)*second);
    *second = (Floats)_mm512_permutex2var_ps(unsorted, high, (__m512)*second);
}

INLINE void decode_step(const uint8_t *codes, Pairs pairs) {
    for (int pair = 0; pair < TILE_ROWS; pair++, codes += COLUMNS) {
        read_ahead(codes, COLUMNS);
        decode_pairs(codes, pairs[0] + pair * LANES);
    }
}

/* Tiles: 0–3 sums, 4 x, 5 sums of x, which take out what codes have too much, 6 weights, 7 ones. */
INLINE void multiply_step(const void *x, int64_t x_bytes, Pairs pairs) {
    tiles_see_stores();
    _tile_loadd(4, x, x_bytes);
    _tile_dpbf16ps(5, 4, 7);
    _tile_loadd(6, pairs[0], TILE_BYTES);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(6, pairs[1], TILE_BYTES);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(6, pairs[2], TILE_BYTES);
    _tile_dpbf16ps(2, 4, 6);
    _tile_loadd(6, pairs[3], TILE_BYTES);
    _tile_dpbf16ps(3, 4, 6);
}

INLINE void take_sums(Room *room) {
    _tile_stored(0, room->sums[0], TILE_BYTES);
    _tile_stored(1, room->sums[1], TILE_BYTES);
    _tile_stored(2, room->sums[2], TILE_BYTES);
    _tile_stored(3, room->sums[3], TILE_BYTES);
    _tile_stored(5, room->sums[4], TILE_BYTES);
    tiles_zero();
    _tile_zero(5);
}

/* `scales` of the group's first column of the block. */
INLINE void add_scaled_group(const Matrix *matrix, int64_t scales, int64_t rows, Room *room) {
    Floats scale[4];
    UNROLL for (int v = 0; v < 4; v++) scale[v] = load_scales(matrix, scales + v * LANES);
    for (int64_t row = 0; row < rows; row++) {
        Floats sums[4], offset = load_floats(room->sums[4][row]) * (float)CODE_OFFSET;
        UNROLL for (int v = 0; v < 4; v++) sums[v] = load_floats(room->sums[v][row]) - offset;
        sort_columns(&sums[0], &sums[1]);
        sort_columns(&sums[2], &sums[3]);
        UNROLL for (int v = 0; v < 4; v++) {
            float *total = &room->totals[row][v * LANES];
            store_floats(total, load_floats(total) + sums[v] * scale[v]);
        }
    }
}

void int4_tiles_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows) {
    const Matrix *matrix = product->weight;
    const uint8_t *codes = (const uint8_t *)matrix->data + piece * COLUMNS / 2 * matrix->in_width;
    const int64_t group = matrix->group, steps = matrix->in_width / TILE_NUMBERS;
    uint16_t x_room[TILE_ROWS * NUMBERS_AT_ONCE];
    Room room;
    memset(room.totals, 0, sizeof room.totals);
    for (int64_t i = 0; i < TILE_ROWS * TILE_NUMBERS; i++) room.ones[i] = 0x3f80;
    tiles_configure((int64_t[]){rows, rows, rows, rows, rows, rows, TILE_ROWS, TILE_ROWS});
    tiles_see_stores();
    _tile_loadd(7, room.ones, TILE_BYTES);
    tiles_zero();
    _tile_zero(5);
    decode_step(codes, room.weights[0]);
    for (int64_t begin = 0, step = 0; begin < matrix->in_width; begin += group) {
        int64_t x_bytes;
        const char *x = operand_tiles(product, first_row, rows, begin, group, x_room, &x_bytes);
        for (int64_t end = step + group / TILE_NUMBERS; step < end; step++, x += TILE_BYTES) {
            if (step + 1 < steps) decode_step(codes + (step + 1) * TILE_ROWS * COLUMNS, room.weights[(step + 1) % 2]);
            multiply_step(x, x_bytes, room.weights[step % 2]);
        }
        take_sums(&room);
        add_scaled_group(matrix, begin / group * matrix->out_width + piece * COLUMNS, rows, &room);
    }
    tiles_end();
    for (int64_t row = 0; row < rows; row++) store_sums(product, first_row + row, piece * COLUMNS, room.totals[row], COLUMNS);
}

#endif
