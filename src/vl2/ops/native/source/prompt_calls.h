/* The calls of single parts, for those that make many of them. */
#pragma once

#include "prompt.h"

int32_t vl2_attend_prompt(Workers *workers, const PromptAttention *own);
int32_t vl2_norm_rows(Workers *workers, const NormJob *own);
int32_t vl2_write_heads(Workers *workers, const HeadsJob *own);
int32_t vl2_write_latent(Workers *workers, const LatentJob *own);
int32_t vl2_rotate_queries(Workers *workers, const LatentJob *own);
int32_t vl2_route_rows(Workers *workers, const RouterJob *own);
int32_t vl2_mix_experts(Workers *workers, const ExpertsJob *own);
int32_t vl2_linear_rows(Workers *workers, const LinearJob *own);

/* x [rows, in], rows x_row numbers apart → out [rows, out], rows out_row apart */
INLINE int32_t call_linear(Workers *workers, const uint16_t *x, int64_t x_row, int64_t rows, const Matrix *weight, Gelu gelu,
                           uint16_t *out, int64_t out_row) {
    LinearJob job = {.x = x, .out = out, .weight = *weight, .rows = rows, .x_row = x_row, .out_row = out_row, .gelu = gelu};
    return vl2_linear_rows(workers, &job);
}
