"""Root-mean-square norm (arXiv:1910.07467) of the decoder, layer norm (arXiv:1607.06450) of the vision tower."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vl2.ops.saturate import to_dtype


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`Backend.rms_norm` (ops/backend.py)."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return to_dtype(wide * weight.float(), weight.dtype)


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.add_rms_norm` (ops/backend.py)."""
    x = x + delta
    return x, rms_norm(x, weight, eps)


LAYER_NORM_EPS = 1e-6


def add_layer_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.add_layer_norm` (ops/backend.py)."""
    x = x if delta is None else x + delta
    normed = F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps=LAYER_NORM_EPS)
    return x, to_dtype(normed, weight.dtype)
