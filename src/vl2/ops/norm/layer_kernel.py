"""The vision tower's layer norm, fused with the addition before it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last
from vl2.ops.norm.reference import LAYER_NORM_EPS
from vl2.ops.saturate_kernel import to_dtype


def add_layer_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.add_layer_norm` (ops/backend.py)."""
    x = x.contiguous()
    width = x.shape[-1]
    total = x if delta is None else torch.empty_like(x)
    added = x if delta is None else delta.contiguous()
    normed = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    block = triton.next_power_of_2(width)
    _add_layer_norm[(x.numel() // width,)](
        x, added, weight, bias, total, normed, added.numel() // width, width, LAYER_NORM_EPS,
        HAS_DELTA=delta is not None, BLOCK=block, num_warps=4 if block <= 2048 else 8, **chained(x.device),
    )  # fmt: skip
    return total, normed


@triton.jit(do_not_specialize=["num_added"])
def _add_layer_norm(
    x, delta, weight, bias, total, normed, num_added, width, eps, HAS_DELTA: tl.constexpr, BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """One row a program; delta's rows begin again after the last."""
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    w = tl.load(weight + columns, mask=inside, other=0.0)
    b = tl.load(bias + columns, mask=inside, other=0.0)
    wait_for_last(CHAINED)
    number = tl.program_id(0)
    at = number.to(tl.int64) * width + columns
    row = tl.load(x + at, mask=inside, other=0.0)
    if HAS_DELTA:
        added = delta + (number % num_added).to(tl.int64) * width
        row = to_dtype(row.to(tl.float32) + tl.load(added + columns, mask=inside, other=0.0).to(tl.float32), row.dtype)
        tl.store(total + at, row, mask=inside)
    wide = row.to(tl.float32)
    centred = tl.where(inside, wide - tl.sum(wide, 0) / width, 0.0)
    scale = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, 0) / width + eps)
    result = centred * scale * w.to(tl.float32) + b.to(tl.float32)
    tl.store(normed + at, to_dtype(result, normed.dtype.element_ty), mask=inside)
