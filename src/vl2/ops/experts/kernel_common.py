"""What both ways of running experts share: the order of tiles, SwiGLU, the weighted sum of a token's experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last
from vl2.ops.experts.mixture import Mixture
from vl2.ops.saturate_kernel import to_dtype


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows of a block, columns of a tile, and the step along the inner dimension; for gate-up, then for down."""

    block_m: int
    up_n: int
    up_k: int
    down_n: int
    down_k: int
    num_warps: int
    num_stages: int


GROUP_BLOCKS = 8
"""Neighbouring blocks that share a tile of weights in the cache before the next tile is begun."""


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """`Backend.swiglu` (ops/backend.py)."""
    inner = gate_up.shape[-1] // 2
    rows = gate_up.reshape(-1, 2 * inner)
    out = torch.empty(*gate_up.shape[:-1], inner, dtype=gate_up.dtype, device=gate_up.device)
    block = 1024
    _swiglu[(len(rows), triton.cdiv(inner, block))](rows, out, inner, BLOCK=block, **chained(out.device))
    return out


def precision(x: torch.Tensor) -> str:
    return "ieee" if x.dtype == torch.float32 else "tf32"  # of 16-bit types it says nothing


def weighted_sum(mixture: Mixture) -> torch.Tensor:
    """[T, C]"""
    (num_tokens, num_routed), width = mixture.weights.shape, mixture.results.shape[1]
    out = torch.empty(num_tokens, width, dtype=mixture.results.dtype, device=mixture.results.device)
    block_c = 1024 if num_tokens > 64 else 256
    _weighted_sum[(num_tokens, triton.cdiv(width, block_c))](
        mixture.results, mixture.weights, mixture.results if mixture.shared is None else mixture.shared, out, width,
        NUM_ROUTED=num_routed, NUM_ACTIVE=mixture.num_active, HAS_SHARED=mixture.shared is not None, BLOCK_C=block_c,
        **chained(out.device),
    )  # fmt: skip
    return out


@triton.jit
def swish(gate, up, dtype: tl.constexpr):
    """silu(gate) · up of accumulators, with the roundings of a model that computes them one by one."""
    gate, up = to_dtype(gate, dtype).to(tl.float32), to_dtype(up, dtype).to(tl.float32)
    return to_dtype(to_dtype(gate / (1.0 + tl.exp(-gate)), dtype).to(tl.float32) * up, dtype)


@triton.jit
def block_and_tile(number, num_blocks, num_tiles, GROUP: tl.constexpr):
    """Number of a piece of work → (block of rows, tile of columns), so that GROUP blocks in a row share a tile."""
    first = number // (GROUP * num_tiles) * GROUP
    size = min(num_blocks - first, GROUP)
    inside = number % (GROUP * num_tiles)
    return first + inside % size, inside // size


@triton.jit
def rows_of_block(pairs, block_experts, block, num_pairs, num_routed, NUM_CHOSEN: tl.constexpr, BLOCK_M: tl.constexpr):
    """(expert, its pairs [BLOCK_M]). A single token needs no sorting: `block_experts` are the ids that it chose.

    Read past the first cache, which may hold what was there before: not all callers have waited (ops/chain.py).
    """
    m = tl.arange(0, BLOCK_M)
    if NUM_CHOSEN > 0:
        chosen = tl.load(block_experts + block, mask=block < NUM_CHOSEN, other=0, cache_modifier=".cg").to(tl.int32)
        expert = tl.where(block < NUM_CHOSEN, chosen, num_routed + block - NUM_CHOSEN)
        pair = tl.where(m == 0, block, num_pairs)
    else:
        expert = tl.load(block_experts + block, cache_modifier=".cg")
        pair = tl.load(pairs + block * BLOCK_M + m, cache_modifier=".cg")
    return expert, pair


@triton.jit
def _weighted_sum(
    results, weights, shared, out, width,
    NUM_ROUTED: tl.constexpr, NUM_ACTIVE: tl.constexpr, HAS_SHARED: tl.constexpr, BLOCK_C: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_last(CHAINED)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < width
    total = add_results(results, weights, shared, token, column, inside, width, NUM_ROUTED, NUM_ACTIVE, HAS_SHARED)
    tl.store(out + token * width + column, total, mask=inside)


@triton.jit
def add_results(
    results, weights, shared, token, column, inside, width,
    NUM_ROUTED: tl.constexpr, NUM_ACTIVE: tl.constexpr, HAS_SHARED: tl.constexpr,
):  # fmt: skip
    """These columns of a token's `Mixture`, rounded to the results' dtype."""
    total = tl.zeros(column.shape, tl.float32)
    for k in tl.static_range(NUM_ACTIVE):
        result = tl.load(results + (token * NUM_ACTIVE + k) * width + column, mask=inside, other=0.0).to(tl.float32)
        if k < NUM_ROUTED:
            total += result * tl.load(weights + token * NUM_ROUTED + k)
        else:
            total += result
    if HAS_SHARED:
        total += tl.load(shared + token * width + column, mask=inside, other=0.0).to(tl.float32)
    return to_dtype(total, results.dtype.element_ty)


@triton.jit
def _swiglu(gate_up, out, inner, BLOCK: tl.constexpr, CHAINED: tl.constexpr):
    wait_for_last(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < inner
    gate = tl.load(gate_up + row * 2 * inner + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * inner + inner + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * inner + column, swish(gate, up, out.dtype.element_ty), mask=inside)
