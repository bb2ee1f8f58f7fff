"""Routed and shared experts as grouped GEMMs: sort, gate-up with SwiGLU, down, weighted sum.

A *pair* is one token at one expert. Shared experts join as further experts that every token takes with weight 1, as
many as their width is multiples of a routed expert's. Pairs are sorted by expert into blocks of `block_m` rows; each
program multiplies one block by one tile of its expert's weights, so an active expert is read once however few tokens
took it. Every result has its own place until the weighted sum, whose order is fixed: nothing depends on other rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last
from vl2.ops.experts.align import align_few
from vl2.ops.experts.boxes import can_box
from vl2.ops.experts.kernel_boxed import mix_boxed
from vl2.ops.experts.kernel_common import (
    GROUP_BLOCKS,
    Tile,
    block_and_tile,
    precision,
    rows_of_block,
    swish,
)
from vl2.ops.experts.kernel_many import mix_many
from vl2.ops.experts.kernel_one import mix_single
from vl2.ops.experts.mixture import Mixture
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.rows import RowRounding
from vl2.ops.saturate_kernel import to_dtype
from vl2.ops.single_row.kernel_common import is_one_row
from vl2.ops.tuning import tuned

FEW, SEVERAL, SOME, MANY = (
    tuned(kernel, Tile) for kernel in ("experts_few", "experts_several", "experts_some", "experts_sorted")
)
LAID_OUT_TOKENS = 2048
"""From here on laying rows out in blocks pays: Small's experts take 649 µs for 658 with 2,048 tokens, 1,049 for 1,068
with 4,096 (H100)."""
BOXED_ROWS = 64
"""Blocks that are whole tiles of the tensor cores take weights as boxes of the copy engine."""
FLOAT32 = Tile(16, 32, 32, 32, 32, 4, 2)


def choose_tile(num_pairs: int, num_experts: int, dtype: torch.dtype) -> Tile:
    """By the mean number of pairs an expert has."""
    if dtype == torch.float32:
        return FLOAT32
    mean = num_pairs / num_experts
    return FEW if mean <= 8 else SEVERAL if mean <= 24 else SOME if mean <= 80 else MANY


def mix_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    experts: ExpertWeights,
    rounding: RowRounding = RowRounding(),
) -> Mixture:
    """`Backend.mix_experts` (ops/backend.py)."""
    num_routed, num_shared = len(experts.gate_up), count_shared(experts)
    if is_one_row(x):
        return mix_single(x, ids, weights, experts, num_shared)
    tile = choose_tile(len(x) * (ids.shape[1] + num_shared), num_routed + num_shared, x.dtype)
    if tile is MANY and len(x) >= LAID_OUT_TOKENS and can_box(x, experts.down):
        return mix_many(x, ids, weights, experts)
    return mix_tiled(x, ids, weights, experts, tile)


def count_shared(experts: ExpertWeights) -> int:
    """Shared experts of a routed one's width."""
    return 0 if experts.shared_gate_up is None else len(experts.shared_gate_up) // experts.gate_up.shape[1]


def mix_tiled(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, experts: ExpertWeights, tile: Tile) -> Mixture:
    """`Backend.mix_experts` with tiles of this size, brought by the copy engine where that can be."""
    if tile.block_m >= BOXED_ROWS and len(x) > 1 and can_box(x, experts.down):
        return mix_boxed(x, ids, weights, experts, count_shared(experts), tile)
    return mix_sorted(x, ids, weights, experts, tile)


def mix_sorted(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, experts: ExpertWeights, tile: Tile
) -> Mixture:
    """`mix_tiled` by threads that compute addresses."""
    num_tokens, width = x.shape
    num_routed, inner = experts.gate_up.shape[0], experts.gate_up.shape[1] // 2
    shared_up, shared_down = experts.shared_gate_up, experts.shared_down
    num_shared = count_shared(experts)
    num_active = ids.shape[1] + num_shared
    blocks, num_blocks, num_chosen = align_few(ids, num_routed, num_shared, tile.block_m)

    hidden = torch.empty(num_tokens * num_active, inner, dtype=x.dtype, device=x.device)
    grid = (num_blocks * triton.cdiv(inner, tile.up_n),)
    _gate_up[grid](
        x, experts.gate_up, shared_up if shared_up is not None else x, hidden, blocks.pairs, blocks.experts,
        num_blocks, num_tokens * num_active, num_routed, width, inner, inner * num_shared, x.stride(0),
        NUM_ACTIVE=num_active, NUM_CHOSEN=num_chosen, BLOCK_M=tile.block_m, BLOCK_N=tile.up_n, BLOCK_K=tile.up_k,
        GROUP=GROUP_BLOCKS, PRECISION=precision(x), num_warps=tile.num_warps, num_stages=tile.num_stages,
        **chained(x.device),
    )  # fmt: skip
    results = torch.empty(num_tokens * num_active, width, dtype=x.dtype, device=x.device)
    grid = (num_blocks * triton.cdiv(width, tile.down_n),)
    _down[grid](
        hidden, experts.down, shared_down if shared_down is not None else x, results, blocks.pairs, blocks.experts,
        num_blocks, num_tokens * num_active, num_routed, width, inner, inner * num_shared,
        NUM_CHOSEN=num_chosen, BLOCK_M=tile.block_m, BLOCK_N=tile.down_n, BLOCK_K=tile.down_k, GROUP=GROUP_BLOCKS,
        PRECISION=precision(x), num_warps=tile.num_warps, num_stages=tile.num_stages, **chained(x.device),
    )  # fmt: skip
    return Mixture(results, weights)


@triton.jit(do_not_specialize=["num_blocks", "num_pairs"])
def _gate_up(
    x, gate_up, shared_gate_up, hidden, pairs, block_experts, num_blocks, num_pairs, num_routed, width, inner,
    shared_inner, row_stride, NUM_ACTIVE: tl.constexpr, NUM_CHOSEN: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_last(CHAINED)
    block, tile = block_and_tile(tl.program_id(0), num_blocks, tl.cdiv(inner, BLOCK_N), GROUP)
    expert, pair = rows_of_block(pairs, block_experts, block, num_pairs, num_routed, NUM_CHOSEN, BLOCK_M)
    if expert < 0:
        return
    is_pair = pair < num_pairs
    rows = x + (pair // NUM_ACTIVE).to(tl.int64)[:, None] * row_stride
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = column < inner
    if expert < num_routed:
        weights = gate_up + expert.to(tl.int64) * (2 * inner * width)
        up_rows = inner
    else:
        weights = shared_gate_up + (expert - num_routed).to(tl.int64) * inner * width
        up_rows = shared_inner
    gates = weights + column.to(tl.int64)[None, :] * width
    ups = gates + up_rows.to(tl.int64) * width
    gate, up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32), tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        is_k = k < width
        a = tl.load(rows + k[None, :], mask=is_pair[:, None] & is_k[None, :], other=0.0)
        mask = is_column[None, :] & is_k[:, None]
        gate = tl.dot(a, tl.load(gates + k[:, None], mask=mask, other=0.0), gate, input_precision=PRECISION)
        up = tl.dot(a, tl.load(ups + k[:, None], mask=mask, other=0.0), up, input_precision=PRECISION)
    at = hidden + pair.to(tl.int64)[:, None] * inner + column[None, :]
    tl.store(at, swish(gate, up, hidden.dtype.element_ty), mask=is_pair[:, None] & is_column[None, :])


@triton.jit(do_not_specialize=["num_blocks", "num_pairs"])
def _down(
    hidden, down, shared_down, results, pairs, block_experts, num_blocks, num_pairs, num_routed, width, inner,
    shared_inner, NUM_CHOSEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_last(CHAINED)
    block, tile = block_and_tile(tl.program_id(0), num_blocks, tl.cdiv(width, BLOCK_N), GROUP)
    expert, pair = rows_of_block(pairs, block_experts, block, num_pairs, num_routed, NUM_CHOSEN, BLOCK_M)
    if expert < 0:
        return
    is_pair = pair < num_pairs
    rows = hidden + pair.to(tl.int64)[:, None] * inner
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = column < width
    if expert < num_routed:
        weights = down + expert.to(tl.int64) * (inner * width)
        stride = inner
    else:
        weights = shared_down + (expert - num_routed).to(tl.int64) * inner
        stride = shared_inner
    columns = weights + column.to(tl.int64)[None, :] * stride
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, inner, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        is_k = k < inner
        a = tl.load(rows + k[None, :], mask=is_pair[:, None] & is_k[None, :], other=0.0)
        b = tl.load(columns + k[:, None], mask=is_column[None, :] & is_k[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    at = results + pair.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(at, to_dtype(total, results.dtype.element_ty), mask=is_pair[:, None] & is_column[None, :])
