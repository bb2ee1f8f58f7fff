"""Results that do not depend on how many rows are computed together.

A GEMM library picks its kernel by the number of rows, and kernels may add up a row's products in different orders.
Where row counts are rounded up to a multiple that all kernels of a processor agree on, a row has the same bits alone,
in a batch, and in a prefill chunk. The multiple is found by trying, on the shapes of the model (`find_row_multiple`).
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

CANDIDATES = (2, 4, 8, 16)
"""One row is a case of its own in every library."""
TRIED_COUNTS = (1, 2, 3, 5, 8, 13)
"""Multiples of a candidate that are compared with `LARGE_COUNT` rows."""
BATCHED_WIDTH = 512
LARGE_COUNT = 97
"""As a batch of tiles, whose rows are not rounded up: it must agree as it is."""


@dataclass(frozen=True, slots=True)
class RowRounding:
    """How row counts are rounded up: to a multiple, and where kernels are compiled for each count, to few sizes.

    oneDNN compiles a bfloat16 kernel for every row count that it meets and keeps about a thousand; with any count a
    server would compile for ever. With 8 `sizes_per_octave` an eighth is wasted at most.
    """

    multiple: int = 1
    sizes_per_octave: int | None = None  # None: every multiple
    is_exact: bool = False  # a row's bits must not depend on the count: one way to multiply for all of them

    def up(self, count: int) -> int:
        multiple = self.multiple
        if self.sizes_per_octave is not None and count:
            multiple = max(multiple, (1 << (count.bit_length() - 1)) // self.sizes_per_octave)
        return round_up(count, multiple)


def round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def pad_rows(x: torch.Tensor, count: int, dim: int = 0) -> torch.Tensor:
    """Zero rows at the end of `dim` up to `count` of them; x itself where none are missing."""
    missing = count - x.shape[dim]
    return F.pad(x, (0, 0) * (x.dim() - 1 - dim) + (0, missing)) if missing else x


@functools.cache
def find_row_multiple(shapes: frozenset[tuple[int, int]], dtypes: frozenset[torch.dtype]) -> int | None:
    """The smallest multiple with which `x @ Wᵀ` and `x @ V`, single and batched, give a row the same bits at every
    count; None: no such.

    shapes  (inner width, outer width) of the model's GEMMs
    """
    multiple = CANDIDATES[0]
    generator = torch.Generator().manual_seed(0)
    for (inner, outer), dtype in itertools.product(sorted(shapes), dtypes):
        x = torch.randn(LARGE_COUNT, inner, generator=generator).to(dtype)
        weight = torch.randn(outer, inner, generator=generator).to(dtype)
        for right in (weight.T, weight.T.contiguous()):
            whole = x @ right
            while not (_agrees(x, right, whole, multiple) and _agrees_batched(x, right, multiple)):
                larger = [candidate for candidate in CANDIDATES if candidate > multiple]
                if not larger:
                    return None
                multiple = larger[0]
    return multiple


def _agrees(x: torch.Tensor, right: torch.Tensor, whole: torch.Tensor, multiple: int) -> bool:
    counts = [multiple * count for count in TRIED_COUNTS if multiple * count < LARGE_COUNT]
    return all(torch.equal(x[:count] @ right, whole[:count]) for count in counts)


def _agrees_batched(x: torch.Tensor, right: torch.Tensor, multiple: int) -> bool:
    pair = right[:, :BATCHED_WIDTH].expand(2, -1, -1)
    whole = torch.stack((x, x)) @ pair
    counts = [multiple * count for count in TRIED_COUNTS if multiple * count < LARGE_COUNT]
    return all(torch.equal(torch.stack((x[:count], x[:count])) @ pair, whole[:, :count]) for count in counts)
