/* What computes prompts and pictures beside torch: threads, and room that grows with what is asked. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "model.h"
#include "pool.h"

typedef struct {
    Pool *pool;
    char *arena;
    size_t size;
} Workers;

/* At least `bytes`, aligned to 64, whose contents are anything; NULL: not enough memory. */
void *workers_room(Workers *workers, size_t bytes);

/* Distances are in numbers. vl2_attend_prompt is only there where the processor multiplies bfloat16. */
typedef struct {
    const uint16_t *q, *keys, *values;
    uint16_t *out;
    const int32_t *pages; /* NULL: keys and values lie in their order; else page i has those from i · page_size on */
    int64_t page_size;    /* a multiple of 16 */
    int64_t rows, context, heads, kv_heads, dim, value_dim; /* dim even */
    int64_t q_row, q_head, key_row, key_head, value_row, value_head, out_row, out_head; /* distances in numbers */
    float scale;
    int32_t is_causal; /* the last query sees all of the context, the one before one position less, … */
} PromptAttention;

/* Rows of float32 or bfloat16 that lie anywhere, each without gaps; prompt_rows.c says what each call reads. */
typedef struct {
    const void *const *from, *const *others;
    const void *weights, *bias;
    void *sums, *out;
    int64_t rows, width, choices;
    float eps;
    int32_t is_bfloat16;
} RowsJob;

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
    const void *weights; /* [rank], of the norm, in the rows' type */
    void *out;           /* the pool [slots, rank + rope_dim]; queries like x */
    const float *cos, *sin; /* [positions, rope_dim / 2] */
    const int64_t *positions, *slots; /* [rows] */
    int64_t rows, x_row, rank, rope_dim, heads, head_width, is_bfloat16;
    double eps;
} LatentJob;

/* A MoE layer on bfloat16 rows. Weights lie in BFLOAT16_BLOCKS or BFLOAT12_BLOCKS of 32 or 64 columns; inputs are multiples of
 * 32, outputs of 64. vl2_mix_experts is only there where the processor multiplies bfloat16. */
typedef struct {
    const uint16_t *x;    /* [tokens, width] */
    const int64_t *ids;   /* [tokens, choices]: experts */
    const float *weights; /* [tokens, choices] */
    const Matrix *gate_up, *down; /* [num_experts], then of the shared ones, as one expert that all tokens take */
    uint16_t *out;        /* [tokens, width] */
    int64_t tokens, width, choices, num_experts, has_shared;
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

/* A linear on bfloat16 rows. The weight lies in blocks like an expert's; inputs are multiples of 32.
 * vl2_linear_rows is only there where the processor has matrix units, and vl2_project_rows, whose results are float32. */
typedef struct {
    const uint16_t *x; /* [rows, in], a row every x_row numbers */
    void *out;         /* [rows, out] */
    Matrix weight;
    int64_t rows, x_row, is_gelu; /* whether gelu(y), the tanh form, is what is wanted */
} LinearJob;
