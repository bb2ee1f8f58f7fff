"""Experts of hundreds to thousands of tokens: an active expert's weights come once, as boxes of the copy engine (TMA).

Like in `kernel.py`, a block's rows are gathered where they lie, and shared experts are further experts; unlike there,
no thread computes the addresses of weights. What takes time then is reading the routed experts; the shared ones, whose
few weights stay in the cache, are arithmetic: their tiles are strewn among the others', so that both go on at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last
from vl2.ops.experts.align import align
from vl2.ops.experts.boxes import box
from vl2.ops.experts.kernel_common import GROUP_BLOCKS, Tile, block_and_tile, rows_of_block, swish
from vl2.ops.experts.mixture import Mixture
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.saturate_kernel import to_dtype


def mix_boxed(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, experts: ExpertWeights, num_shared: int, tile: Tile
) -> Mixture:
    """`Backend.mix_experts` (ops/backend.py) of 16-bit rows, more than one; of a routed one's width there are
    `num_shared`. An inner width that is no multiple of `down_k` wants finite shared weights: zero times the next
    expert's is added."""
    (num_tokens, width), num_active = x.shape, ids.shape[1] + num_shared
    num_routed, inner = experts.down.shape[::2]
    blocks = align(ids, num_routed, num_shared, tile.block_m)
    num_blocks, num_pairs = len(blocks.experts), num_tokens * num_active
    shared_up, shared_down = experts.shared_gate_up, experts.shared_down
    of_blocks = (blocks.pairs, blocks.experts, blocks.num_used, num_shared * triton.cdiv(num_tokens, tile.block_m))
    sizes = (num_pairs, num_routed, width, inner)
    options = dict(
        BLOCK_M=tile.block_m, GROUP=GROUP_BLOCKS, num_warps=tile.num_warps, num_stages=tile.num_stages,
        **chained(x.device),
    )  # fmt: skip
    up_box, down_box = (tile.up_n, tile.up_k), (tile.down_n, tile.down_k)
    gate_up, down = box(experts.gate_up.flatten(0, 1), *up_box), box(experts.down.flatten(0, 1), *down_box)
    hidden = torch.empty(num_pairs, inner, dtype=x.dtype, device=x.device)
    _gate_up[(num_blocks * triton.cdiv(inner, tile.up_n),)](
        x, gate_up, gate_up if shared_up is None else box(shared_up, *up_box), hidden, *of_blocks, *sizes,
        inner * num_shared, x.stride(0), NUM_ACTIVE=num_active, BLOCK_N=tile.up_n, BLOCK_K=tile.up_k, **options,
    )  # fmt: skip
    results = torch.empty(num_pairs, width, dtype=x.dtype, device=x.device)
    _down[(num_blocks * triton.cdiv(width, tile.down_n),)](
        hidden, down, down if shared_down is None else box(shared_down, *down_box), results, *of_blocks, *sizes,
        BLOCK_N=tile.down_n, BLOCK_K=tile.down_k, **options,
    )  # fmt: skip
    return Mixture(results, weights)


@triton.jit
def _own_work(
    pairs, block_experts, used, num_strewn, num_pairs, num_routed, num_tiles, BLOCK_M: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """(whether there is any, the expert, its pairs [M], the tile of columns). Tiles of the first `num_strewn` blocks
    come evenly among the others', of which a program has either."""
    num_used = tl.load(used)
    number = tl.minimum(tl.program_id(0), num_used * num_tiles - 1)
    num_few = num_strewn * num_tiles
    every = num_used * num_tiles // tl.maximum(num_few, 1)
    is_strewn = (number % every == 0) & (number // every < num_few)
    before = tl.minimum((number + every - 1) // every, num_few)
    few_block, few_tile = block_and_tile(number // every, tl.maximum(num_strewn, 1), num_tiles, GROUP)
    block, tile = block_and_tile(number - before, num_used - num_strewn, num_tiles, GROUP)
    block = tl.where(is_strewn, few_block, block + num_strewn)
    expert, pair = rows_of_block(pairs, block_experts, block, num_pairs, num_routed, 0, BLOCK_M)
    return number == tl.program_id(0), expert, pair, tl.where(is_strewn, few_tile, tile)


@triton.jit
def _two_products(rows, is_row, weights, first, second, width, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """rows [M, 1] of pointers times the rows of `weights` from `first` and from `second` on: two [M, N]."""
    gate, up = tl.zeros((rows.shape[0], BLOCK_N), tl.float32), tl.zeros((rows.shape[0], BLOCK_N), tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(rows + k[None, :], mask=is_row[:, None] & (k < width)[None, :], other=0.0)
        gate = tl.dot(a, weights.load([first, start]).T, gate)
        up = tl.dot(a, weights.load([second, start]).T, up)
    return gate, up


@triton.jit(do_not_specialize=["num_strewn", "num_pairs"])
def _gate_up(
    x, gate_up, shared_gate_up, hidden, pairs, block_experts, used, num_strewn, num_pairs, num_routed, width, inner,
    shared_inner, row_stride, NUM_ACTIVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """A tile may reach into other rows of weights than its own: those columns are not stored."""
    wait_for_last(CHAINED)
    is_used, expert, pair, tile = _own_work(
        pairs, block_experts, used, num_strewn, num_pairs, num_routed, tl.cdiv(inner, BLOCK_N), BLOCK_M, GROUP
    )
    if not is_used:
        return
    is_pair = pair < num_pairs
    rows = x + (pair // NUM_ACTIVE).to(tl.int64)[:, None] * row_stride
    weights, first, second = gate_up, expert * 2 * inner, inner
    if expert >= num_routed:
        weights, first, second = shared_gate_up, (expert - num_routed) * inner, shared_inner
    first += tile * BLOCK_N
    gate, up = _two_products(rows, is_pair, weights, first, first + second, width, BLOCK_N, BLOCK_K)
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    at = hidden + pair.to(tl.int64)[:, None] * inner + column[None, :]
    tl.store(at, swish(gate, up, hidden.dtype.element_ty), mask=is_pair[:, None] & (column < inner)[None, :])


@triton.jit
def _product(rows, is_row, weights, first, first_k, inner, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """rows [M, 1] of pointers times the rows of `weights` from `first` on, from column `first_k` on: [M, N]."""
    total = tl.zeros((rows.shape[0], BLOCK_N), tl.float32)
    for start in range(0, inner, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(rows + k[None, :], mask=is_row[:, None] & (k < inner)[None, :], other=0.0)
        total = tl.dot(a, weights.load([first, first_k + start]).T, total)
    return total


@triton.jit(do_not_specialize=["num_strewn", "num_pairs"])
def _down(
    hidden, down, shared_down, results, pairs, block_experts, used, num_strewn, num_pairs, num_routed, width, inner,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_last(CHAINED)
    is_used, expert, pair, tile = _own_work(
        pairs, block_experts, used, num_strewn, num_pairs, num_routed, tl.cdiv(width, BLOCK_N), BLOCK_M, GROUP
    )
    if not is_used:
        return
    is_pair = pair < num_pairs
    rows = hidden + pair.to(tl.int64)[:, None] * inner
    weights, first, first_k = down, expert * width, 0
    if expert >= num_routed:
        weights, first, first_k = shared_down, 0, (expert - num_routed) * inner
    total = _product(rows, is_pair, weights, first + tile * BLOCK_N, first_k, inner, BLOCK_N, BLOCK_K)
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    at = results + pair.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(at, to_dtype(total, results.dtype.element_ty), mask=is_pair[:, None] & (column < width)[None, :])
