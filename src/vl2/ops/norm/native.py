"""The decoder's norm by the native library, in one pass with the addition before it."""

from __future__ import annotations

import torch

from vl2.ops.native.prompts import row_workers
from vl2.ops.norm import reference


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`Backend.rms_norm` (ops/backend.py)."""
    workers = row_workers(x)
    if workers is None or x.dtype != weight.dtype or x.dim() != 2:
        return reference.rms_norm(x, weight, eps)
    return workers.add_rms_norm(x, None, weight, eps)[1]


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.add_rms_norm` (ops/backend.py)."""
    workers = row_workers(x)
    if workers is None or not x.dtype == delta.dtype == weight.dtype:
        return reference.add_rms_norm(x, delta, weight, eps)
    return workers.add_rms_norm(x, delta, weight, eps)
