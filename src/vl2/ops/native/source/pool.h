/* A few threads that share one loop at a time. The caller works too, and never waits for a thread that has not begun. */
#pragma once

typedef struct Pool Pool;

/* Do piece `idx`; `thread` is below the pool's number of threads and no other piece runs with it now. */
typedef void (*Task)(void *context, long idx, int thread);

/* `threads` with the caller's; NULL: the system gave no memory. Fewer threads, if it starts no more. */
Pool *pool_new(int threads);
void pool_free(Pool *pool);

/* Before the first loop: half of the threads take pieces from the end, so that of two loops over the same rows a thread mostly
 * does the same ones, which are in its cache. Loops over weights, which are read once, lose 2 % by it. */
void pool_take_from_both_ends(Pool *pool);
int pool_threads(const Pool *pool);

/* All pieces 0 … count - 1, in any order, on any thread; returns when they are done. One caller at a time. */
void pool_run(Pool *pool, Task task, void *context, long count);
