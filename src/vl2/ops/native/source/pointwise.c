#include "pointwise.h"

#include <math.h>

void rms_norm(const float *x, const float *weight, float eps, int64_t width, float *out) {
    float factor = 1.0f / sqrtf(dot_values(x, x, 0, width, 0) / (float)width + eps);
    for (int64_t i = 0; i < width; i++) out[i] = x[i] * factor * weight[i];
}

/* Σ x[i], in vectors. */
static float sum_of(const float *x, int64_t width) {
    Floats sums = {0};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) sums += load_floats(x + i);
    float total = sum_floats(sums);
    for (; i < width; i++) total += x[i];
    return total;
}

void layer_norm(const float *x, const float *weight, const float *bias, float eps, int64_t width, float *out) {
    float mean = sum_of(x, width) / (float)width;
    for (int64_t i = 0; i < width; i++) out[i] = x[i] - mean;
    float factor = 1.0f / sqrtf(dot_values(out, out, 0, width, 0) / (float)width + eps);
    for (int64_t i = 0; i < width; i++) out[i] = out[i] * factor * weight[i] + bias[i];
}

void swiglu(const float *gate_up, int64_t width, float *out) {
    const float *up = gate_up + width;
    for (int64_t i = 0; i < width; i++) out[i] = gate_up[i] / (1.0f + exponential(-gate_up[i])) * up[i];
}

void rotate_halves(float *x, const float *cos, const float *sin, int64_t width) {
    float *second = x + width / 2;
    for (int64_t i = 0; i < width / 2; i++) {
        float a = x[i], b = second[i];
        x[i] = a * cos[i] - b * sin[i];
        second[i] = b * cos[i] + a * sin[i];
    }
}

void rotate_pairs(float *x, const float *cos, const float *sin, int64_t width) {
    for (int64_t i = 0; i < width / 2; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cos[i] - b * sin[i];
        x[2 * i + 1] = b * cos[i] + a * sin[i];
    }
}

void softmax(float *x, int64_t width) {
    float most = x[0];
    for (int64_t k = 1; k < width; k++) most = x[k] > most ? x[k] : most;
    for (int64_t k = 0; k < width; k++) x[k] = exponential(x[k] - most);
    float factor = 1.0f / sum_of(x, width);
    for (int64_t k = 0; k < width; k++) x[k] *= factor;
}

void read_row(const void *from, int64_t first, int64_t width, int is_bfloat16, float *out) {
    if (!is_bfloat16) {
        memcpy(out, (const float *)from + first, (size_t)width * sizeof(float));
        return;
    }
    const uint16_t *halves = (const uint16_t *)from + first;
    for (int64_t i = 0; i < width; i++) out[i] = from_bf16(halves[i]);
}

void write_row(const float *x, int64_t width, int is_bfloat16, void *to, int64_t first) {
    if (!is_bfloat16) {
        memcpy((float *)to + first, x, (size_t)width * sizeof(float));
        return;
    }
    uint16_t *halves = (uint16_t *)to + first;
    for (int64_t i = 0; i < width; i++) halves[i] = to_bf16(x[i]);
}
