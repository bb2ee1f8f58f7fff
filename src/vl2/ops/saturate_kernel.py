"""`ops/saturate.py` for kernels."""

from __future__ import annotations

import triton
import triton.language as tl

FLOAT8_MAX = tl.constexpr(448.0)


@triton.jit
def to_dtype(x, dtype: tl.constexpr):
    """Cast, saturating where the target is float16 or float8."""
    if dtype == tl.float16:
        x = tl.clamp(x.to(tl.float32), -65504.0, 65504.0)
    elif dtype == tl.float8e4nv:
        x = tl.clamp(x.to(tl.float32), -FLOAT8_MAX, FLOAT8_MAX)
    return x.to(dtype)
