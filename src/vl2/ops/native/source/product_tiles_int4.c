/* Products with 4-bit weights of more rows than product_bytes.c takes at once, on matrix units, which multiply bytes too:
 * sums are exact there as well, and a row has the same bits. */
#include "amx.h"
#include "bytes.h"
#include "product_pieces.h"
#include "quads.h"

#if HAS_AMX && HAS_BYTE_DOT

enum { COLUMNS = 64, MOST_INPUTS = 64 /* of a tile */, VECTORS = 2 /* of columns at once, half of a block */ };

typedef uint32_t Codes[STEP_INPUTS / 4][4][LANES]; /* by fours of inputs, in four vectors of columns */

typedef struct {
    _Alignas(64) Codes codes[2]; /* of these inputs and the next: tiles wait for what was just stored */
    _Alignas(64) int8_t x[2][TILE_ROWS][STEP_INPUTS]; /* high and low bytes of rows that lie apart */
    _Alignas(64) int32_t sums[2][VECTORS][TILE_ROWS][LANES];
    _Alignas(64) float totals[TILE_ROWS][COLUMNS];
} Room;

/* Where rows' bytes lie, `row_bytes` apart. */
typedef struct {
    const int8_t *high, *low;
    int64_t row_bytes;
} Rows;

INLINE Rows find_rows(const Product *product, int64_t first_row, int64_t rows, int64_t begin, int64_t inputs, Room *room) {
    const Operand *operand = product->operand;
    const int32_t *in_rows = product->in_rows + first_row;
    if (follow_one_another(in_rows, rows)) {
        ByteRow first = byte_row(operand, in_rows[0]);
        return (Rows){first.high + begin, first.low + begin, operand_bytes(operand->stride)};
    }
    for (int64_t row = 0; row < rows; row++) {
        ByteRow own = byte_row(operand, in_rows[row]);
        memcpy(room->x[0][row], own.high + begin, (size_t)inputs);
        memcpy(room->x[1][row], own.low + begin, (size_t)inputs);
    }
    return (Rows){room->x[0][0], room->x[1][0], STEP_INPUTS};
}

INLINE void decode(const uint8_t *codes, int64_t inputs, Codes to) {
    for (int64_t quad = 0; quad < inputs / 4; quad++, codes += 2 * COLUMNS) {
        Quads quads = load_quads(codes);
        UNROLL for (int v = 0; v < 4; v++) _mm512_store_si512(to[quad][v], quads.columns[v]);
    }
}

INLINE int64_t tile_inputs(int64_t inputs) { return smaller(inputs, MOST_INPUTS); }

/* Tiles: 0 and 1 sums of high bytes with two vectors of columns, 2 and 3 of low ones, 4 and 5 x, 6 and 7 weights. */
INLINE void multiply_half(Rows x, int64_t inputs, Codes codes, int first, Room *room) {
    tiles_see_stores();
    tiles_zero();
    for (int64_t i = 0; i < inputs; i += tile_inputs(inputs)) {
        _tile_loadd(4, x.high + i, x.row_bytes);
        _tile_loadd(6, codes[i / 4][first], 4 * TILE_BYTES);
        _tile_dpbsud(0, 4, 6);
        _tile_loadd(7, codes[i / 4][first + 1], 4 * TILE_BYTES);
        _tile_dpbsud(1, 4, 7);
        _tile_loadd(5, x.low + i, x.row_bytes);
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
    }
    _tile_stored(0, room->sums[0][0], TILE_BYTES);
    _tile_stored(1, room->sums[0][1], TILE_BYTES);
    _tile_stored(2, room->sums[1][0], TILE_BYTES);
    _tile_stored(3, room->sums[1][1], TILE_BYTES);
    tiles_see_stores();
}

/* What a row of x adds to its sums: what codes are too much, and the size of a step. */
typedef struct {
    int32_t offsets[TILE_ROWS];
    float steps[TILE_ROWS];
} Scaling;

INLINE Scaling find_scaling(const Product *product, int64_t first_row, int64_t rows, int64_t begin, int64_t inputs) {
    Scaling scaling;
    for (int64_t row = 0; row < rows; row++) {
        ByteRow x = byte_row(product->operand, product->in_rows[first_row + row]);
        scaling.offsets[row] = offset_of(&x, begin, inputs);
        scaling.steps[row] = x.steps[begin / STEP_INPUTS];
    }
    return scaling;
}

/* `scales` of the first of two vectors of columns. */
INLINE void add_half(const Matrix *matrix, int64_t scales, const Scaling *x, int64_t rows, int first, Room *room) {
    UNROLL for (int v = 0; v < VECTORS; v++) {
        Floats scale = load_scales(matrix, scales + v * LANES);
        for (int64_t row = 0; row < rows; row++) {
            float *total = &room->totals[row][(first + v) * LANES];
            __m512i high = _mm512_load_si512(room->sums[0][v][row]);
            __m512i low = _mm512_add_epi32(_mm512_load_si512(room->sums[1][v][row]), _mm512_set1_epi32(x->offsets[row]));
            store_floats(total, add_scaled(load_floats(total), high, low, scale * x->steps[row]));
        }
    }
}

void int4_tiles_piece(const Product *product, int64_t piece, int64_t first_row, int64_t rows) {
    const Matrix *matrix = product->weight;
    const int64_t inputs = inputs_at_once(matrix), bytes = inputs * COLUMNS / 2;
    const uint8_t *codes = (const uint8_t *)matrix->data + piece * COLUMNS / 2 * matrix->in_width;
    Room room;
    memset(room.totals, 0, (size_t)rows * sizeof *room.totals);
    tiles_configure_bytes(rows, tile_inputs(inputs));
    decode(codes, inputs, room.codes[0]);
    for (int64_t begin = 0, idx = 0; begin < matrix->in_width; begin += inputs, idx++) {
        int64_t scales = begin / matrix->group * matrix->out_width + piece * COLUMNS;
        if (begin + inputs < matrix->in_width) decode(codes + (idx + 1) * bytes, inputs, room.codes[(idx + 1) % 2]);
        Rows x = find_rows(product, first_row, rows, begin, inputs, &room);
        Scaling scaling = find_scaling(product, first_row, rows, begin, inputs);
        for (int first = 0; first < 4; first += VECTORS) {
            multiply_half(x, inputs, room.codes[idx % 2], first, &room);
            add_half(matrix, scales + first * LANES, &scaling, rows, first, &room);
        }
    }
    tiles_end();
    for (int64_t row = 0; row < rows; row++) store_sums(product, first_row + row, piece * COLUMNS, room.totals[row], COLUMNS);
}

#endif
