/* Which experts a token takes, and with what weights: `route` of ops/gate/reference.py. Float32 throughout. */
#pragma once

#include "model.h"

/* scores [experts]: the router's products; changed. `spare` holds 2 · experts numbers. Best first; equal scores go to
 * the lower id. */
void choose_experts(const Model *model, const float *bias, float *scores, float *spare, int32_t *ids, float *weights);
