#include "prompt.h"

#include <stdlib.h>

#include "engine.h"

EXPORT void vl2_workers_free(Workers *workers) {
    if (workers == NULL) return;
    if (workers->pool != NULL) pool_free(workers->pool);
    free(workers->of_call.at);
    free(workers->of_layers.at);
    free(workers);
}

/* NULL: not enough memory. */
EXPORT Workers *vl2_workers_new(int32_t threads) {
    Workers *workers = calloc(1, sizeof *workers);
    if (workers != NULL && (workers->pool = pool_new(threads)) == NULL) {
        free(workers);
        return NULL;
    }
    if (workers != NULL) pool_take_from_both_ends(workers->pool);
    return workers;
}

void *room_of(Room *room, size_t bytes) {
    if (bytes > room->size) {
        free(room->at);
        room->size = (bytes + 63) / 64 * 64;
        room->at = aligned_alloc(64, room->size);
        if (room->at == NULL) room->size = 0;
    }
    return room->at;
}
