"""float16 holds at most 65,504. A larger result is kept at that limit instead of becoming infinite, and then NaN."""

from __future__ import annotations

import torch

_LIMIT = torch.finfo(torch.float16).max


def saturate(x: torch.Tensor) -> torch.Tensor:
    """Clamp a float16 tensor in place; other dtypes pass through."""
    return x.clamp_(-_LIMIT, _LIMIT) if x.dtype == torch.float16 else x


def to_dtype(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cast, saturating where the target is float16."""
    return x.clamp(-_LIMIT, _LIMIT).to(dtype) if dtype == torch.float16 else x.to(dtype)
