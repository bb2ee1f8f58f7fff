"""Root-mean-square norm (arXiv:1910.07467)."""

from __future__ import annotations

import torch

from vl2.ops.saturate import to_dtype


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) · weight, computed in float32.

    x       [..., C]  any float
    weight  [C]       any float
    Returns [..., C]  weight's dtype
    """
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return to_dtype(wide * weight.float(), weight.dtype)
