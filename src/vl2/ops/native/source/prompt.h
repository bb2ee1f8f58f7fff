/* What computes prompts and pictures beside torch: threads, and room that grows with what is asked. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "counts.h"
#include "model.h"
#include "pool.h"

typedef struct {
    char *at;
    size_t size;
} Room;

typedef struct {
    Pool *pool;
    Room of_call, of_layers; /* of one call; of what makes several calls of its own */
} Workers;

/* At least `bytes`, aligned to 64, whose contents are anything; NULL: not enough memory. */
void *room_of(Room *room, size_t bytes);

INLINE void *workers_room(Workers *workers, size_t bytes) { return room_of(&workers->of_call, bytes); }

/* The next `bytes`, from *at on. Where it begins at 0 it only counts. */
INLINE void *take(uintptr_t *at, int64_t bytes) {
    uintptr_t taken = *at;
    *at += (uintptr_t)up(bytes, 64);
    return (void *)taken;
}

/* Numbers between rows that products read, or those of a tile would want the same few lines of a cache: 5 to 10 % of it. */
enum { SPARE = 32 };

/* Distances are in numbers. vl2_attend_prompt is only there where the processor multiplies bfloat16. */
typedef struct {
    const uint16_t *q, *keys, *values;
    uint16_t *out;
    const int32_t *pages; /* NULL: keys and values lie in their order; else page i has those from i · page_size on */
    int64_t page_size;    /* a multiple of 16 */
    int64_t rows, context, heads, kv_heads, dim, value_dim; /* dim even */
    int64_t q_row, q_head, key_row, key_head, value_row, value_head, out_row, out_head; /* distances in numbers */
    const uint16_t *tails; /* of keys: their last tail_dim numbers, the same of all heads; NULL: they lie with the others */
    int64_t tail_row, tail_dim; /* tail_dim even; with tails, pages are NULL */
    float scale;
    int32_t is_causal; /* the last query sees all of the context, the one before one position less, … */
} PromptAttention;

/* Rows of float32 or bfloat16 that lie anywhere, each without gaps; prompt_rows.c says what each call reads. */
typedef struct {
    const void *const *from, *const *others;
    const float *weights;
    void *out;
    int64_t rows, width, choices, is_bfloat16;
} RowsJob;

/* Norms: x + delta rounded goes to `sums`, which may be x; its norm to `out`. */
typedef struct {
    const void *x, *delta; /* [rows, width], rows x_row and delta_row numbers apart; delta may be NULL, sums is left alone then */
    const float *weights, *bias; /* [width]; without a bias it is an RMS norm */
    void *sums, *out;            /* [rows, width]; rows of out are out_row numbers apart */
    int64_t rows, width, x_row, delta_row, out_row, is_bfloat16;
    double eps;
} NormJob;

/* MHA: rotate queries and keys of each row and write keys and values into their slots. */
typedef struct {
    const void *qkv; /* [rows, (heads + 2 · kv_heads) · dim] */
    void *q, *pool;  /* [rows, heads · dim]; [2, slots, kv_heads · dim] */
    const float *cos, *sin; /* [positions, dim / 2] */
    const int64_t *positions, *slots; /* [rows] */
    int64_t rows, qkv_row, heads, kv_heads, dim, num_slots;
    int64_t is_bfloat16;
} HeadsJob;

/* MLA: norm and rotate the latent rows and write them into their slots; or rotate queries, of which the last rope_dim numbers of
 * each head are rotated. */
typedef struct {
    const void *x;       /* [rows, x_row]; queries [rows, heads · head_width] */
    const float *weights; /* [rank], of the norm */
    void *out;           /* the pool [slots, rank + rope_dim]; queries like x */
    const float *cos, *sin; /* [positions, rope_dim / 2] */
    const int64_t *positions, *slots; /* [rows] */
    int64_t rows, x_row, rank, rope_dim, heads, head_width, is_bfloat16;
    double eps;
} LatentJob;

/* A MoE layer on bfloat16 rows. Weights lie in BFLOAT16_BLOCKS or BFLOAT12_BLOCKS of 32 or 64 columns; inputs are multiples of
 * 32, outputs of 64. vl2_mix_experts is only there where the processor multiplies bfloat16. */
typedef struct {
    const uint16_t *x;    /* [tokens, width], a row every x_row numbers */
    const int64_t *ids;   /* [tokens, choices]: experts */
    const float *weights; /* [tokens, choices] */
    const Matrix *gate_up, *down; /* [num_experts], then of the shared ones, as one expert that all tokens take */
    uint16_t *out;        /* [tokens, width] */
    int64_t tokens, width, x_row, choices, num_experts, has_shared;
} ExpertsJob;

/* The router of a MoE layer: of `choice` it reads what is about experts. */
typedef struct {
    const void *x; /* [rows, router.in_width], a row every x_row numbers */
    Matrix router; /* FLOAT32_ROWS */
    const float *bias; /* [experts] or NULL */
    int64_t *ids;      /* [rows, num_active], like the weights */
    float *weights;
    const Model *choice;
    int64_t rows, x_row, is_bfloat16;
} RouterJob;

typedef enum { NO_GELU = 0, TANH_GELU = 1, ERF_GELU = 2 } Gelu;

/* A linear on bfloat16 rows. The weight lies in blocks like an expert's; rows of x are filled up with zeros to multiples of 32.
 * vl2_linear_rows is only there where the processor has matrix units, and vl2_project_rows, whose results are float32. */
typedef struct {
    const uint16_t *x; /* [rows, in], a row every x_row numbers */
    void *out;         /* [rows, out], a row every out_row numbers; of vl2_project_rows without gaps */
    Matrix weight;
    int64_t rows, x_row, out_row, gelu; /* of y, if one is wanted: a Gelu */
} LinearJob;

/* Rows of one sequence, `start` of the prompt's rows on: the last one sees `context` positions, which lie in `pages`. */
typedef struct {
    const int32_t *pages;
    int64_t start, rows, context;
} Chunk;

/* All layers of a decoder on a prompt's rows, in bfloat16 and on matrix units. The last one computes results of some rows alone. */
typedef struct {
    const Model *model;
    uint16_t *x; /* [rows, hidden]: embeddings; then anything */
    const int64_t *positions, *slots, *last_rows; /* [rows], [rows], [num_last] */
    const Chunk *chunks, *last_chunks; /* [num_chunks]; [num_last_chunks], whose rows are those of last_rows */
    uint16_t *out; /* [num_last, hidden], after the final norm */
    int64_t rows, num_chunks, num_last, num_last_chunks;
} DecoderJob;

/* A block of the vision tower. */
typedef struct {
    const float *norm1, *norm1_bias, *norm2, *norm2_bias;
    Matrix qkv, proj, fc1, fc2;
} TowerBlock;

/* The vision tower on some tiles, in bfloat16 and on matrix units. */
typedef struct {
    const uint8_t *pixels;   /* [tiles, side, side, 3] */
    const uint16_t *numbers; /* [256]: what a pixel's value becomes */
    const uint16_t *places;  /* [grid², width]: of each patch */
    const TowerBlock *blocks;
    const float *norm, *norm_bias; /* the last one */
    uint16_t *out;                 /* [tiles · grid², width] */
    Matrix embed;                  /* inputs by channels, then rows of a patch */
    int64_t tiles, side, grid, patch, width, heads, inner, num_blocks;
    double eps;
} TowerJob;

/* What the tower's patches become tokens by: ratio × ratio of them side by side, then linears with GELUs between them. */
typedef struct {
    const uint16_t *features; /* [tiles, grid², width] */
    const Matrix *linears;    /* [num_linears]; widths between them are multiples of 32 */
    uint16_t *out;            /* [tiles · ⌈grid / ratio⌉², …] */
    int64_t tiles, grid, width, ratio, num_linears;
} ProjectorJob;
