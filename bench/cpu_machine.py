"""What `cpu.py` compares with: bytes read a second and bfloat16 operations a second, of all cores together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

READ_BYTES = 2**28
"""More than second-level caches hold; where cores share a larger one, it is a part of what is measured."""
SIDE, REPEATS = 2048, 3


@dataclass(frozen=True)
class Machine:
    bytes_per_s: float  # the best of a plain read and a bfloat16 matrix-vector product
    flops_per_s: float  # bfloat16, 2048³

    @classmethod
    def measure(cls) -> Machine:
        """The best of a few: what others take away is no property of the machine."""
        words = torch.ones(READ_BYTES // 8, dtype=torch.int64)
        matrix, vector = torch.ones(READ_BYTES // 4096, 2048).bfloat16(), torch.ones(2048).bfloat16()
        square = torch.randn(SIDE, SIDE).bfloat16()  # as weights are: of equal numbers products may be faster
        read_s = min(best_s(words.sum), best_s(lambda: torch.mv(matrix, vector)))
        return cls(READ_BYTES / read_s, 2 * SIDE**3 / best_s(lambda: square @ square))

    def or_better(self, other: Machine) -> Machine:
        return Machine(max(self.bytes_per_s, other.bytes_per_s), max(self.flops_per_s, other.flops_per_s))


def best_s(run: Callable[[], object], repeats: int = REPEATS) -> float:
    seconds = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started_s)
    return min(seconds)
