/* Operations on single rows, in float32. */
#pragma once

#include "simd.h"

/* x / sqrt(mean(x²) + eps) · weight */
void rms_norm(const float *x, const float *weight, float eps, int64_t width, float *out);

/* (x - mean) / sqrt(variance + eps) · weight + bias */
void layer_norm(const float *x, const float *weight, const float *bias, float eps, int64_t width, float *out);

/* silu(gate) · up; `gate_up` holds `width` numbers of each. */
void swiglu(const float *gate_up, int64_t width, float *out);

/* Rotate in place; cos and sin [width / 2]. Llama's pairing: i with i + width / 2; MLA's: 2i with 2i + 1. */
void rotate_halves(float *x, const float *cos, const float *sin, int64_t width);
void rotate_pairs(float *x, const float *cos, const float *sin, int64_t width);

void softmax(float *x, int64_t width);

/* Numbers of the model's type, float32 or bfloat16, from index `first` on. */
void read_row(const void *from, int64_t first, int64_t width, int is_bfloat16, float *out);
void write_row(const float *x, int64_t width, int is_bfloat16, void *to, int64_t first);
