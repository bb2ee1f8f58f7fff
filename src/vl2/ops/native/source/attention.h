/* Attention of one new token of each sequence on its paged cache; softmax and sums in float32. */
#pragma once

#include "model.h"

/* Rotate the step's queries and keys and write keys and values into their pages.
 * MHA: qkv [rows, (heads + 2 · kv_heads) · head_dim]; afterwards its queries are rotated.
 * MLA: q [rows, heads · (nope_dim + rope_dim)], its last parts are rotated; latent [rows, rank + rope_dim]. */
void write_heads(const Model *model, const Layer *layer, const Step *step, float *qkv);
void write_latent(const Model *model, const Layer *layer, const Step *step, float *q, float *latent);

/* Numbers that one thread needs. */
int64_t attention_scratch(const Model *model);

/* A piece is one row and one head (MHA: one head of the cache and the heads that read it).
 * q as above, out [rows, heads · head_dim or value_dim]. */
int64_t attention_pieces(const Model *model, const Step *step);
void attend(const Model *model, const Layer *layer, const Step *step, const float *q, float *out, float *scratch,
            int64_t piece);
