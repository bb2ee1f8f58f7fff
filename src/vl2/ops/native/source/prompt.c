#include "prompt.h"

#include <stdlib.h>

#include "engine.h"

EXPORT void vl2_workers_free(Workers *workers) {
    if (workers == NULL) return;
    if (workers->pool != NULL) pool_free(workers->pool);
    free(workers->arena);
    free(workers);
}

/* NULL: not enough memory. */
EXPORT Workers *vl2_workers_new(int32_t threads) {
    Workers *workers = calloc(1, sizeof *workers);
    if (workers != NULL && (workers->pool = pool_new(threads)) == NULL) {
        free(workers);
        return NULL;
    }
    return workers;
}

void *workers_room(Workers *workers, size_t bytes) {
    if (bytes > workers->size) {
        free(workers->arena);
        workers->size = (bytes + 63) / 64 * 64;
        workers->arena = aligned_alloc(64, workers->size);
        if (workers->arena == NULL) workers->size = 0;
    }
    return workers->arena;
}
