/* Of counts and sizes. */
#pragma once

#include "simd.h"

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Parts of `size` that hold `count`; the last may be smaller. */
INLINE int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

/* `count` filled up to a whole multiple. */
INLINE int64_t up(int64_t count, int64_t multiple) { return parts_of(count, multiple) * multiple; }
