#include "router.h"

#include <math.h>

#include "pointwise.h"

/* The index of the largest number; of equal ones the first. */
static int64_t largest(const float *x, int64_t count) {
    int64_t best = 0;
    for (int64_t i = 1; i < count; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static float group_score(const Model *model, const float *choice, int64_t size) {
    int64_t best = largest(choice, size);
    if (model->choice != NOAUX_TC) return choice[best];
    float second = -INFINITY;
    for (int64_t i = 0; i < size; i++)
        if (i != best && choice[i] > second) second = choice[i];
    return choice[best] + second;
}

/* Scores of groups that are not chosen become 0, not -infinity, as in the official code. */
static void keep_best_groups(const Model *model, float *choice, float *group_scores) {
    int64_t size = model->num_experts / model->num_groups;
    for (int64_t group = 0; group < model->num_groups; group++)
        group_scores[group] = group_score(model, choice + group * size, size);
    for (int64_t i = 0; i < model->num_active_groups; i++)
        group_scores[largest(group_scores, model->num_groups)] = -INFINITY; /* chosen */
    for (int64_t group = 0; group < model->num_groups; group++)
        if (group_scores[group] != -INFINITY) memset(choice + group * size, 0, (size_t)size * sizeof(float));
}

void choose_experts(const Model *model, const float *bias, float *scores, float *spare, int32_t *ids, float *weights) {
    int64_t count = model->num_experts;
    float *choice = spare, total = 0.0f;
    if (model->scoring == SOFTMAX)
        softmax(scores, count);
    else
        for (int64_t i = 0; i < count; i++) scores[i] = 1.0f / (1.0f + exponential(-scores[i]));
    for (int64_t i = 0; i < count; i++) choice[i] = bias == NULL ? scores[i] : scores[i] + bias[i];
    if (model->choice != GREEDY && model->num_groups > 1) keep_best_groups(model, choice, spare + count);
    for (int64_t i = 0; i < model->num_active; i++) {
        ids[i] = (int32_t)largest(choice, count);
        choice[ids[i]] = -INFINITY;
        weights[i] = scores[ids[i]];
        total += weights[i];
    }
    float factor = model->routed_scale;
    if (model->normalises && model->num_active > 1) factor /= total + 1e-20f;
    for (int64_t i = 0; i < model->num_active; i++) weights[i] *= factor;
}
