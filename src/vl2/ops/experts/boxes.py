"""Tiles of a matrix as the copy engine (TMA) brings them: no thread computes an address."""

from __future__ import annotations

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from vl2.ops.chain import is_before_hopper

ALIGNMENT = 16
"""Bytes: rows that the copy engine reads begin at multiples of it."""


def can_box(x: torch.Tensor, down: torch.Tensor) -> bool:
    """Whether there is a copy engine (TMA), without which nothing would be loaded ahead, and it takes these widths."""
    widths = x.shape[1], down.shape[2]
    is_able = x.dtype != torch.float32 and not is_before_hopper(x.device)
    return is_able and all(width * x.element_size() % ALIGNMENT == 0 for width in widths)


def box(matrix: torch.Tensor, *sides: int) -> TensorDescriptor:
    """How the copy engine sees a matrix, or several of a size: what lies beyond its edges is zero."""
    return TensorDescriptor.from_tensor(matrix, list(sides))
