"""How many CPU threads a step uses, and how they wait for each other. No torch: `limit_spinning` comes before it.

Measured with nano on two cores, tokens/s alone and beside one other busy process (docs/log.md, 2026-11-25): threads
that spin without limit 298 and 1.6, threads that sleep at once 110 and 170, one thread 260 and 215.
"""

from __future__ import annotations

import os

SPIN_COUNT = "2000"
"""Turns that a waiting OpenMP thread spins before it sleeps: a few microseconds."""

SMALL_STEP_TOKENS = 16
SMALL_WEIGHTS_BYTES = 64 * 2**20


def limit_spinning() -> None:
    """Must run before torch is imported, as OpenMP reads its settings once. What the user has set stays."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def threads_for_step(num_tokens: int, num_tiles: int, weights_bytes: int, num_threads: int) -> int:
    """One thread where a step is so small that threads would wait for each other longer than they work."""
    is_small = num_tiles == 0 and num_tokens <= SMALL_STEP_TOKENS and weights_bytes <= SMALL_WEIGHTS_BYTES
    return 1 if is_small else num_threads


def choose_num_threads(threads: int | None, num_replicas: int) -> int:
    """CPU threads of one replica: as given, or its share of the cores that this process may use."""
    return threads or max(1, len(os.sched_getaffinity(0)) // num_replicas)
