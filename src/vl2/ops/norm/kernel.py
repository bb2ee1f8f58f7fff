"""Root-mean-square norm in one pass, with the addition before it where there is one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last
from vl2.ops.experts.kernel_common import add_results
from vl2.ops.experts.mixture import Mixture
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
    x: torch.Tensor, delta: torch.Tensor | Mixture, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.add_rms_norm` (ops/backend.py)."""
    x, delta = x.contiguous(), delta.contiguous() if isinstance(delta, torch.Tensor) else delta
    total, normed = torch.empty_like(x), torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    if len(x):
        _launch(x, delta, weight, eps, total, normed)
    return total, normed


def _launch(
    x: torch.Tensor,
    delta: torch.Tensor | Mixture | None,
    weight: torch.Tensor,
    eps: float,
    total: torch.Tensor,
    normed: torch.Tensor,
) -> None:
    block = triton.next_power_of_2(x.shape[1])
    _rms_norm[(len(x),)](
        x, *parts_of_delta(delta, x), weight, total, normed, x.stride(0), eps, WIDTH=x.shape[1], **kinds_of(delta),
        BLOCK=block, num_warps=max(1, min(8, block // 256)), **chained(x.device),
    )  # fmt: skip


def parts_of_delta(delta: torch.Tensor | Mixture | None, nothing: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """delta, results and their weights, as `add_delta` takes them."""
    if isinstance(delta, Mixture):
        return nothing if delta.shared is None else delta.shared, delta.results, delta.weights
    return (nothing if delta is None else delta), nothing, nothing


def kinds_of(delta: torch.Tensor | Mixture | None) -> dict[str, object]:
    if isinstance(delta, Mixture):
        active = dict(NUM_ROUTED=delta.weights.shape[1], NUM_ACTIVE=delta.num_active)
        return dict(HAS_DELTA=delta.shared is not None, **active)
    return dict(HAS_DELTA=delta is not None, NUM_ROUTED=0, NUM_ACTIVE=0)


@triton.jit(do_not_specialize=["eps"])
def _rms_norm(
    x, delta, results, shares, weight, total, normed, stride, eps, WIDTH: tl.constexpr, HAS_DELTA: tl.constexpr,
    NUM_ROUTED: tl.constexpr, NUM_ACTIVE: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One row a program."""
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    row = tl.program_id(0).to(tl.int64)
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    wait_for_last(CHAINED)
    value = tl.load(x + row * stride + columns, mask=inside, other=0.0)
    value = add_delta(value, delta, results, shares, row, columns, inside, WIDTH, HAS_DELTA, NUM_ROUTED, NUM_ACTIVE)
    if HAS_DELTA or NUM_ACTIVE > 0:
        tl.store(total + row * WIDTH + columns, value, mask=inside)
    tl.store(normed + row * WIDTH + columns, norm(value, w, WIDTH, eps, normed.dtype.element_ty), mask=inside)


@triton.jit
def add_delta(
    value, delta, results, shares, row, columns, inside, WIDTH: tl.constexpr, HAS_DELTA: tl.constexpr,
    NUM_ROUTED: tl.constexpr, NUM_ACTIVE: tl.constexpr,
):  # fmt: skip
    """A row of the residual stream and what comes to it: `delta`, or a `Mixture` that `delta` is part of."""
    if NUM_ACTIVE > 0:
        added = add_results(results, shares, delta, row, columns, inside, WIDTH, NUM_ROUTED, NUM_ACTIVE, HAS_DELTA)
        value = to_dtype(value.to(tl.float32) + added.to(tl.float32), value.dtype)
    elif HAS_DELTA:
        added = tl.load(delta + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
        value = to_dtype(value.to(tl.float32) + added, value.dtype)
    return value


@triton.jit
def norm(value, weight, WIDTH: tl.constexpr, eps, dtype: tl.constexpr):
    """A whole row, normed; zero beyond WIDTH."""
    wide = value.to(tl.float32)
    return to_dtype(wide * tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps) * weight, dtype)
