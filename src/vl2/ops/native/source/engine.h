/* What an engine works with: its threads and the room for one step. */
#pragma once

#include "model.h"
#include "pool.h"

#define EXPORT __attribute__((visibility("default")))

/* Products that are done together: piece `idx` belongs to the last product that starts at or before it. */
typedef struct {
    Product *products;
    int64_t *starts, count, pieces;
} Products;

typedef struct {
    const Model *model;
    Pool *pool;
    float *arena;
    float *x;          /* [rows, hidden]: the residual stream */
    float *normed;     /* [rows, widest row]: a row before it becomes an operand */
    float *q, *latent; /* queries (MHA: with keys and values), MLA's latent rows */
    float *attended;   /* [rows, heads · dim] */
    float *inner;      /* [pairs + rows, 2 · widest]: gates and ups; pairs are (row, choice) */
    float *outer;      /* [pairs + rows, hidden]: what layers add */
    float *scores;     /* [rows, experts], then 2 · experts to choose with */
    float *weights;    /* [rows, choices] */
    float *scratch;    /* [threads, attention_scratch] */
    Operand operand, shared_operand; /* of the next products; of the shared experts' down */
    int32_t *rows;             /* 0, 1, 2, … */
    int32_t *ids;              /* [rows, choices]: chosen experts */
    int32_t *pairs, *pair_rows; /* pairs by expert, and their rows */
    int32_t *expert_starts;    /* [all experts + 2]: where each one's pairs begin */
    Products products;
} Engine;

/* Experts of one token: those that the router chooses, then the shared ones that are experts like the others. */
INLINE int64_t num_choices(const Model *model) { return model->num_active + model->num_joined; }
