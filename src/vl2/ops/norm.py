"""Root-mean-square norm (arXiv:1910.07467)."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out_dtype: torch.dtype | None = None) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) · weight, computed in float32.

    x       [..., C]  any float
    weight  [C]       any float
    Returns [..., C]  out_dtype, by default weight's dtype
    """
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * weight.float()).to(out_dtype or weight.dtype)
