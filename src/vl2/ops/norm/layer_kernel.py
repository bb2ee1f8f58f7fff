"""The vision tower's layer norm, fused with the addition before it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

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
    first = triton.next_power_of_2(width) // 2
    _add_layer_norm[(x.numel() // width,)](
        x, added, weight, bias, total, normed, added.numel() // width, LAYER_NORM_EPS, HAS_DELTA=delta is not None,
        WIDTH=width, FIRST=first, REST=triton.next_power_of_2(width - first), num_warps=1,
    )  # fmt: skip
    return total, normed


@triton.jit(do_not_specialize=["num_added"])
def _add_layer_norm(
    x, delta, weight, bias, total, normed, num_added, eps, HAS_DELTA: tl.constexpr, WIDTH: tl.constexpr,
    FIRST: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """One row a program; delta's rows begin again after the last. A row is two powers of two, 1024 + 128 in SigLIP, so
    that none of a warp's numbers are for nothing; in one warp sums need no shared memory. Started early (ops/chain.py),
    it would only be in the way of the product before it.
    """
    a, b = tl.arange(0, FIRST), FIRST + tl.arange(0, REST)
    inside = b < WIDTH
    weight_a, weight_b = tl.load(weight + a), tl.load(weight + b, mask=inside, other=0.0)
    bias_a, bias_b = tl.load(bias + a), tl.load(bias + b, mask=inside, other=0.0)
    number = tl.program_id(0)
    at, added = number.to(tl.int64) * WIDTH, (number % num_added).to(tl.int64) * WIDTH
    row_a, row_b = tl.load(x + at + a), tl.load(x + at + b, mask=inside, other=0.0)
    if HAS_DELTA:
        delta_a, delta_b = tl.load(delta + added + a), tl.load(delta + added + b, mask=inside, other=0.0)
        row_a = to_dtype(row_a.to(tl.float32) + delta_a.to(tl.float32), row_a.dtype)
        row_b = to_dtype(row_b.to(tl.float32) + delta_b.to(tl.float32), row_b.dtype)
        tl.store(total + at + a, row_a)
        tl.store(total + at + b, row_b, mask=inside)
    row_a, row_b = row_a.to(tl.float32), row_b.to(tl.float32)
    mean = (tl.sum(row_a, 0) + tl.sum(row_b, 0)) / WIDTH
    row_a, row_b = row_a - mean, tl.where(inside, row_b - mean, 0.0)
    scale = 1.0 / tl.sqrt_rn((tl.sum(row_a * row_a, 0) + tl.sum(row_b * row_b, 0)) / WIDTH + eps)
    row_a = row_a * scale * weight_a.to(tl.float32) + bias_a.to(tl.float32)
    row_b = row_b * scale * weight_b.to(tl.float32) + bias_b.to(tl.float32)
    tl.store(normed + at + a, to_dtype(row_a, normed.dtype.element_ty))
    tl.store(normed + at + b, to_dtype(row_b, normed.dtype.element_ty), mask=inside)
