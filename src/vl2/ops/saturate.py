"""float16 holds at most 65,504. A larger result is kept at that limit instead of becoming infinite, and then NaN.

So does float8 (e4m3), which has no infinity and holds at most 448.
"""

from __future__ import annotations

import torch

_LIMIT = torch.finfo(torch.float16).max
FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = torch.finfo(FLOAT8).max
_LIMITS = {torch.float16: _LIMIT, FLOAT8: FLOAT8_MAX}


def saturate(x: torch.Tensor) -> torch.Tensor:
    """Clamp a float16 tensor in place; other dtypes pass through."""
    return x.clamp_(-_LIMIT, _LIMIT) if x.dtype == torch.float16 else x


def to_dtype(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cast, saturating where the target is float16 or float8."""
    limit = _LIMITS.get(dtype)
    return x.to(dtype) if limit is None else x.clamp(-limit, limit).to(dtype)
