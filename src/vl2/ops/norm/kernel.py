"""Root-mean-square norm in one pass, with the addition before it where there is one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last
from vl2.ops.saturate_kernel import to_dtype


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`Backend.rms_norm` (ops/backend.py)."""
    width = x.shape[-1]
    rows = x if x.dim() == 2 and x.stride(1) == 1 else x.reshape(-1, width).contiguous()
    normed = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    if len(rows):
        _launch(rows, None, weight, eps, rows, normed)
    return normed


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.add_rms_norm` (ops/backend.py)."""
    x, delta = x.contiguous(), delta.contiguous()
    total, normed = torch.empty_like(x), torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    if len(x):
        _launch(x, delta, weight, eps, total, normed)
    return total, normed


def _launch(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    total: torch.Tensor,
    normed: torch.Tensor,
) -> None:
    block = triton.next_power_of_2(x.shape[1])
    _rms_norm[(len(x),)](
        x, x if delta is None else delta, weight, total, normed, x.stride(0), eps,
        WIDTH=x.shape[1], HAS_DELTA=delta is not None, BLOCK=block, num_warps=max(1, min(8, block // 256)),
        **chained(x.device),
    )  # fmt: skip


@triton.jit(do_not_specialize=["eps"])
def _rms_norm(
    x,
    delta,
    weight,
    total,
    normed,
    stride,
    eps,
    WIDTH: tl.constexpr,
    HAS_DELTA: tl.constexpr,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """One row a program."""
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    row = tl.program_id(0).to(tl.int64)
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    wait_for_last(CHAINED)
    value = tl.load(x + row * stride + columns, mask=inside, other=0.0)
    if HAS_DELTA:
        added = tl.load(delta + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
        value = to_dtype(value.to(tl.float32) + added, value.dtype)
        tl.store(total + row * WIDTH + columns, value, mask=inside)
    wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps)
    tl.store(normed + row * WIDTH + columns, to_dtype(wide * scale * w, normed.dtype.element_ty), mask=inside)
