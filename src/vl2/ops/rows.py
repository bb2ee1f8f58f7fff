"""Results that do not depend on how many rows are computed together.

A GEMM library picks its kernel by the number of rows, and kernels may add up a row's products in different orders.
Where row counts are rounded up to a multiple that all kernels of a processor agree on, a row has the same bits alone,
in a batch, and in a prefill chunk. The multiple is found by trying, on the shapes of the model (`find_row_multiple`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
import torch.nn.functional as F

CANDIDATES = (1, 2, 4, 8, 16)
TRIED_COUNTS = (1, 2, 3, 5, 8, 13)
"""Multiples of a candidate that are compared with `LARGE_COUNT` rows."""
LARGE_COUNT = 97
"""As a batch of tiles, whose rows are not rounded up: it must agree as it is."""


def round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def pad_rows(x: torch.Tensor, multiple: int, dim: int = 0) -> torch.Tensor:
    """Zero rows at the end of `dim` up to a multiple; x itself where none are missing."""
    missing = -x.shape[dim] % multiple
    return F.pad(x, (0, 0) * (x.dim() - 1 - dim) + (0, missing)) if missing else x


def find_row_multiple(shapes: Iterable[tuple[int, int]], dtypes: Iterable[torch.dtype]) -> int | None:
    """The smallest multiple with which `x @ Wᵀ` and `x @ V` give a row the same bits at every count; None: no such.

    shapes  (inner width, outer width) of the model's GEMMs
    """
    multiple = CANDIDATES[0]
    generator = torch.Generator().manual_seed(0)
    for (inner, outer), dtype in itertools.product(sorted(set(shapes)), dtypes):
        x = torch.randn(LARGE_COUNT, inner, generator=generator).to(dtype)
        weight = torch.randn(outer, inner, generator=generator).to(dtype)
        for right in (weight.T, weight.T.contiguous()):
            whole = x @ right
            while not _agrees(x, right, whole, multiple):
                larger = [candidate for candidate in CANDIDATES if candidate > multiple]
                if not larger:
                    return None
                multiple = larger[0]
    return multiple


def _agrees(x: torch.Tensor, right: torch.Tensor, whole: torch.Tensor, multiple: int) -> bool:
    counts = [multiple * count for count in TRIED_COUNTS if multiple * count < LARGE_COUNT]
    return all(torch.equal(x[:count] @ right, whole[:count]) for count in counts)
