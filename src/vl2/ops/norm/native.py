"""Norms by the native library, in one pass with the addition before them."""

from __future__ import annotations

import torch

from vl2.ops.experts.mixture import Mixture, add_up
from vl2.ops.native.prompts import row_workers
from vl2.ops.norm import reference


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`Backend.rms_norm` (ops/backend.py)."""
    workers = row_workers(x)
    if workers is None or x.dtype != weight.dtype or x.dim() != 2:
        return reference.rms_norm(x, weight, eps)
    return workers.add_norm(x, None, weight, eps)[1]


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor | Mixture, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.add_rms_norm` (ops/backend.py)."""
    workers = row_workers(x)
    delta = add_up(delta)
    if workers is None or not x.dtype == delta.dtype == weight.dtype:
        return reference.add_rms_norm(x, delta, weight, eps)
    return workers.add_norm(x, delta, weight, eps)


def add_layer_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.add_layer_norm` (ops/backend.py)."""
    workers = row_workers(x)
    if workers is None or x.dtype != weight.dtype:
        return reference.add_layer_norm(x, delta, weight, bias)
    rows, added = (None if part is None else part.expand_as(x).flatten(0, -2) for part in (x, delta))
    assert rows is not None
    sums, normed = workers.add_norm(rows, added, weight, reference.LAYER_NORM_EPS, bias)
    return sums.view(x.shape), normed.view(x.shape)
