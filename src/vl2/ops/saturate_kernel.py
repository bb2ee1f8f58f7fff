"""`ops/saturate.py` for kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def to_dtype(x, dtype: tl.constexpr):
    """Cast, saturating where the target is float16."""
    if dtype == tl.float16:
        x = tl.clamp(x.to(tl.float32), -65504.0, 65504.0)
    return x.to(dtype)
