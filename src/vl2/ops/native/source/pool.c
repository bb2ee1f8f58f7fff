#define _GNU_SOURCE
#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Turns that a thread looks for work before it sleeps: some tens of microseconds, longer than what lies between two
 * loops of a step. On a machine that others use too, a thread that spins takes the core from the one it waits for. */
enum { SPIN_TURNS = 2000, SHARES = 4, MOST_PIECES = 0xffff };

typedef struct {
    Pool *pool;
    pthread_t handle;
    int idx;
} Thread;

/* `loop` says it all in one word, so that a piece can only be taken of the loop that is running: which loop (upper 32
 * bits), where the pieces that nobody has taken end, and where they begin (16 bits each). `first` is what piece 0 of it is to the caller,
 * of whose pieces one loop takes MOST_PIECES. */
struct Pool {
    _Alignas(64) _Atomic uint64_t loop;
    _Alignas(64) _Atomic long num_done;
    _Alignas(64) _Atomic(Task) task;
    _Atomic(void *) context;
    _Atomic long first;
    _Alignas(64) _Atomic uint32_t wakes; /* threads sleep on it */
    _Atomic int sleepers;
    atomic_bool is_closing, has_both_ends;
    int num_threads;
    Thread threads[];
};

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static long pieces_left(uint64_t loop) { return (long)(loop >> 16 & 0xffff) - (long)(loop & 0xffff); }

static bool has_piece(uint64_t loop) { return pieces_left(loop) > 0; }

/* Pieces that a thread takes at once: many while many are left, as neighbours lie side by side in memory and taking costs
 * time; few at the end, so that nobody waits long for the last. */
static long share_of(const Pool *pool, uint64_t loop) {
    long share = pieces_left(loop) / (SHARES * pool->num_threads);
    return share > 1 ? share : 1;
}

/* Take pieces until none is left. What the task is was written before the loop was announced, and is written again
 * only when all pieces are done: read between a look at the loop and a piece taken of it, it belongs to it. */
static void work(Pool *pool, int thread) {
    bool is_from_end = pool->has_both_ends && thread % 2 != 0;
    uint64_t loop = atomic_load(&pool->loop);
    while (has_piece(loop)) {
        Task task = atomic_load_explicit(&pool->task, memory_order_relaxed);
        void *context = atomic_load_explicit(&pool->context, memory_order_relaxed);
        long share = share_of(pool, loop), from_end = (long)(loop >> 16 & 0xffff) - share;
        long first = atomic_load_explicit(&pool->first, memory_order_relaxed) + (is_from_end ? from_end : (long)(loop & 0xffff));
        uint64_t taken = (uint64_t)share << (is_from_end ? 16 : 0);
        if (atomic_compare_exchange_weak(&pool->loop, &loop, is_from_end ? loop - taken : loop + taken)) {
            for (long piece = first; piece < first + share; piece++) task(context, piece, thread);
            atomic_fetch_add(&pool->num_done, share);
            loop = atomic_load(&pool->loop);
        }
    }
}

static void sleep_until_woken(Pool *pool) {
    uint32_t seen = atomic_load(&pool->wakes);
    atomic_fetch_add(&pool->sleepers, 1);
    if (!has_piece(atomic_load(&pool->loop)) && !atomic_load(&pool->is_closing))
        syscall(SYS_futex, &pool->wakes, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void wake_sleepers(Pool *pool) {
    if (atomic_exchange(&pool->sleepers, 0) > 0) {
        atomic_fetch_add(&pool->wakes, 1);
        syscall(SYS_futex, &pool->wakes, FUTEX_WAKE_PRIVATE, pool->num_threads, NULL, NULL, 0);
    }
}

static void *serve(void *argument) {
    Thread *own = argument;
    Pool *pool = own->pool;
    while (!atomic_load(&pool->is_closing)) {
        int turns = 0;
        while (!has_piece(atomic_load(&pool->loop)) && ++turns < SPIN_TURNS) relax();
        if (turns < SPIN_TURNS)
            work(pool, own->idx);
        else
            sleep_until_woken(pool);
    }
    return NULL;
}

Pool *pool_new(int threads) {
    size_t bytes = (sizeof(Pool) + (size_t)threads * sizeof(Thread) + 63) / 64 * 64;
    Pool *pool = aligned_alloc(64, bytes);
    if (pool == NULL) return NULL;
    *pool = (Pool){.num_threads = 1};
    for (int idx = 1; idx < threads; idx++) {
        Thread *thread = &pool->threads[idx];
        *thread = (Thread){.pool = pool, .idx = idx};
        if (pthread_create(&thread->handle, NULL, serve, thread) != 0) break;
        pool->num_threads = idx + 1;
    }
    return pool;
}

void pool_free(Pool *pool) {
    atomic_store(&pool->is_closing, true);
    atomic_store(&pool->sleepers, pool->num_threads);
    wake_sleepers(pool);
    for (int idx = 1; idx < pool->num_threads; idx++) pthread_join(pool->threads[idx].handle, NULL);
    free(pool);
}

void pool_take_from_both_ends(Pool *pool) { atomic_store(&pool->has_both_ends, true); }

int pool_threads(const Pool *pool) { return pool->num_threads; }

static void run_some(Pool *pool, Task task, void *context, long first, long count) {
    atomic_store_explicit(&pool->task, task, memory_order_relaxed);
    atomic_store_explicit(&pool->context, context, memory_order_relaxed);
    atomic_store_explicit(&pool->first, first, memory_order_relaxed);
    atomic_store_explicit(&pool->num_done, 0, memory_order_relaxed);
    uint64_t previous = atomic_load(&pool->loop) >> 32;
    atomic_store(&pool->loop, (previous + 1) << 32 | (uint64_t)count << 16);
    wake_sleepers(pool);
    work(pool, 0);
    for (int turns = 0; atomic_load(&pool->num_done) < count; turns++) {
        relax();
        if (turns >= SPIN_TURNS) sched_yield();
    }
}

void pool_run(Pool *pool, Task task, void *context, long count) {
    if (pool->num_threads == 1 || count == 1) {
        for (long idx = 0; idx < count; idx++) task(context, idx, 0);
    } else {
        for (long first = 0; first < count; first += MOST_PIECES)
            run_some(pool, task, context, first, count - first < MOST_PIECES ? count - first : MOST_PIECES);
    }
}
