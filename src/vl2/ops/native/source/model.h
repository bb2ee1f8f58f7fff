/* What a decoding step is told: a model's weights, once, and each step's rows. Mirrored by ops/native/structures.py. */
#pragma once

#include "product.h"

typedef enum { GREEDY = 0, GROUP_LIMITED_GREEDY = 1, NOAUX_TC = 2 } Choice;
typedef enum { SOFTMAX = 0, SIGMOID = 1 } Scoring;

/* A matrix whose data is NULL is not there. */
typedef struct {
    const float *attention_norm, *mlp_norm; /* [hidden] */
    Matrix qkv;                             /* MHA: queries, keys, values */
    Matrix q_a, q_b;                        /* MLA: q_a only with a query rank; then q_b's input is normed by q_norm */
    Matrix kv_a, kv_b;                      /* kv_b in rows: of each head its keys' rows, then its values' */
    Matrix kv_expand;                       /* kv_b once more, in blocks, for prompts */
    const float *q_norm, *kv_norm;          /* [query rank], [rank] */
    Matrix o_proj;
    Matrix gate_up, down;    /* of the dense layer, or of the shared experts */
    Matrix router;           /* [experts, hidden] float32; NULL: a dense layer */
    const float *router_bias; /* [experts] or NULL */
    const Matrix *expert_gate_up, *expert_down; /* [experts + joined] */
    void *pool;              /* the layer's cache (model/kv_pool.py), in the model's type */
} Layer;

typedef struct {
    int64_t num_layers, hidden, vocabulary;
    int64_t heads, kv_heads, head_dim;              /* MHA */
    int64_t rank, q_rank, nope_dim, rope_dim, value_dim; /* MLA; rank 0: MHA */
    int64_t num_experts, num_active, num_groups, num_active_groups;
    int64_t num_joined;      /* shared experts behind the routed ones, which every token takes with weight 1 */
    int64_t widest;          /* inner width of any feed-forward layer or expert */
    int64_t page_size, num_slots; /* of the cache: tokens a page, tokens in all */
    int64_t max_rows, max_context;
    int32_t is_bfloat16, choice, scoring, normalises;
    float eps, inner_eps, scale, routed_scale;
    const void *embeddings;  /* [vocabulary, hidden] in the model's type */
    const float *cos, *sin;  /* [positions, rotated / 2] */
    const float *final_norm; /* [hidden] */
    Matrix lm_head;
    const Layer *layers;
} Model;

/* One token of each of `rows` sequences. */
typedef struct {
    int64_t rows;
    const int64_t *token_ids; /* [rows] */
    const int64_t *positions; /* [rows]; each sees its cache up to itself */
    const int32_t *tables;    /* [rows, table_width]: a sequence's pages in order */
    int64_t table_width;
    float *logits;            /* [rows, vocabulary] */
} Step;
