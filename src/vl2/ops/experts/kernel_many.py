"""Experts of a prompt's many tokens: rows are laid out in blocks of one expert each, and tiles come as whole boxes.

What differs from `kernel.py`: a block's rows lie side by side, so the copy engine (TMA) brings tiles of rows and of
weights to shared memory without a thread computing addresses; the shared experts, which every token takes, are two
plain matrix products.

Programs stay on their multiprocessor and take one tile after the other without a pause: the steps of all its tiles are
one loop for a program, so that the next tile's first boxes are on their way while this one's last products run and its
results are stored. The tensor core adds by itself, and whatever else touches the sums makes it wait in every step: they
are touched after a tile's last step alone, and gate and up are the halves of one product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vl2.ops.experts.align import Blocks, align_many
from vl2.ops.experts.boxes import box
from vl2.ops.experts.kernel_common import GROUP_BLOCKS, Tile, block_and_tile, swiglu, swish
from vl2.ops.experts.mixture import Mixture
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.saturate import saturate
from vl2.ops.saturate_kernel import to_dtype
from vl2.ops.tuning import num_multiprocessors, tuned

TILE = tuned("experts_many", Tile)


def mix_many(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, experts: ExpertWeights, tile: Tile = TILE
) -> Mixture:
    """`Backend.mix_experts` (ops/backend.py) of 16-bit rows."""
    num_routed, width, inner = experts.down.shape
    blocks = align_many(ids, num_routed, 0, tile.block_m)
    num_blocks, num_pairs, num_programs = len(blocks.experts), ids.numel(), num_multiprocessors(x.device)
    options = dict(BLOCK_M=tile.block_m, GROUP=GROUP_BLOCKS, num_warps=tile.num_warps, num_stages=tile.num_stages)
    rows = lay_out(x, blocks, ids.shape[1], tile.block_m)
    hidden = torch.empty(len(rows), inner, dtype=x.dtype, device=x.device)
    _gate_up[(min(num_blocks * triton.cdiv(inner, tile.up_n), num_programs),)](
        box(rows, tile.block_m, tile.up_k), box(experts.gate_up.view(-1, inner, width), 2, tile.up_n, tile.up_k),
        hidden, blocks.experts, blocks.num_used, width, inner, BLOCK_N=tile.up_n, BLOCK_K=tile.up_k, **options,
    )  # fmt: skip
    del rows  # the results may lie there
    results = torch.empty(num_pairs, width, dtype=x.dtype, device=x.device)
    _down[(min(num_blocks * triton.cdiv(width, tile.down_n), num_programs),)](
        box(hidden, tile.block_m, tile.down_k), box(experts.down.flatten(0, 1), tile.down_n, tile.down_k), results,
        blocks.pairs, blocks.experts, blocks.num_used, num_pairs, width, inner, BLOCK_N=tile.down_n,
        BLOCK_K=tile.down_k, **options,
    )  # fmt: skip
    return Mixture(results, weights, _shared(x, experts))


def lay_out(x: torch.Tensor, blocks: Blocks, num_active: int, block_m: int) -> torch.Tensor:
    """Tokens [T, C] at the places of their pairs: [B · M, C]. What fills blocks up is anything."""
    rows = torch.empty(len(blocks.experts) * block_m, x.shape[1], dtype=x.dtype, device=x.device)
    _lay_out[(len(x),)](
        x, rows, blocks.places, x.shape[1], x.stride(0), NUM_ACTIVE=num_active,
        BLOCK_C=min(2048, triton.next_power_of_2(x.shape[1])),
    )  # fmt: skip
    return rows


def _shared(x: torch.Tensor, experts: ExpertWeights) -> torch.Tensor | None:
    """What all tokens take."""
    if experts.shared_gate_up is None or experts.shared_down is None:
        return None
    inner = swiglu(saturate(torch.mm(x, experts.shared_gate_up.t())))
    return saturate(torch.mm(inner, experts.shared_down.t()))


@triton.jit
def _lay_out(x, rows, places, width, row_stride, NUM_ACTIVE: tl.constexpr, BLOCK_C: tl.constexpr):
    """Copy a token, which is read once, to its places. What fills a block up stays as it is: a product's row depends on
    no other one, and what comes of those rows is not stored.
    """
    token = tl.program_id(0)
    for start in range(0, width, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        row = tl.load(x + token.to(tl.int64) * row_stride + columns, mask=columns < width)
        for choice in tl.static_range(NUM_ACTIVE):
            place = tl.load(places + token * NUM_ACTIVE + choice).to(tl.int64)
            tl.store(rows + place * width + columns, row, mask=columns < width)


@triton.jit
def _begin_tiles(num_tiles, num_steps):
    """(number of the tile before this program's first, its last step, how many steps all its tiles have)."""
    num_own = tl.cdiv(num_tiles - tl.program_id(0), tl.num_programs(0))
    return tl.program_id(0) - tl.num_programs(0), num_steps - 1, num_own * num_steps


@triton.jit
def _next_step(
    step, number, block, tile, expert, block_experts, num_blocks, num_tiles, num_steps, GROUP: tl.constexpr
):  # fmt: skip
    """All five of the next step: the same tile's, or the first one of the program's next tile."""
    step = tl.where(step == num_steps - 1, 0, step + 1)
    if step == 0:
        number += tl.num_programs(0)
        block, tile = block_and_tile(number, num_blocks, num_tiles, GROUP)
        expert = tl.load(block_experts + block)
    return step, number, block, tile, expert


@triton.jit
def _new_sums(M: tl.constexpr, N: tl.constexpr):
    """Zeros that the compiler does not know: it would choose between known ones and the sums in every step."""
    return tl.broadcast_to(tl.program_id(2).to(tl.float32), (M, N))


@triton.jit
def _gate_up(
    rows, gate_up, hidden, block_experts, used, width, inner, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """rows [B · M, C], gate_up [E · 2, F, C] → hidden [B · M, F]."""
    num_blocks, num_tiles, num_steps = tl.load(used), tl.cdiv(inner, BLOCK_N), tl.cdiv(width, BLOCK_K)
    number, step, num_own = _begin_tiles(num_blocks * num_tiles, num_steps)
    block, tile, expert = 0, 0, 0
    both = tl.zeros((BLOCK_M, 2 * BLOCK_N), tl.float32)
    for _ in range(num_own):
        step, number, block, tile, expert = _next_step(
            step, number, block, tile, expert, block_experts, num_blocks, num_tiles, num_steps, GROUP
        )
        a = rows.load([block * BLOCK_M, step * BLOCK_K])
        weights = gate_up.load([2 * expert, tile * BLOCK_N, step * BLOCK_K]).reshape(2 * BLOCK_N, BLOCK_K)
        both = tl.dot(a, weights.T, both)
        if step == num_steps - 1:
            gate, up = both.reshape(BLOCK_M, 2, BLOCK_N).permute(0, 2, 1).split()  # each thread has both of its rows
            m, column = block * BLOCK_M + tl.arange(0, BLOCK_M), tile * BLOCK_N + tl.arange(0, BLOCK_N)
            at = hidden + m.to(tl.int64)[:, None] * inner + column[None, :]
            tl.store(at, swish(gate, up, hidden.dtype.element_ty), mask=(column < inner)[None, :])
            both = _new_sums(BLOCK_M, 2 * BLOCK_N)


@triton.jit(do_not_specialize=["num_pairs"])
def _down(
    hidden, down, results, pairs, block_experts, used, num_pairs, width, inner, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """hidden [B · M, F], down [E · C, F] → results [pairs, C]. A tile may reach into the next expert's rows of weights:
    those columns are not stored."""
    num_blocks, num_tiles, num_steps = tl.load(used), tl.cdiv(width, BLOCK_N), tl.cdiv(inner, BLOCK_K)
    number, step, num_own = _begin_tiles(num_blocks * num_tiles, num_steps)
    block, tile, expert = 0, 0, 0
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(num_own):
        step, number, block, tile, expert = _next_step(
            step, number, block, tile, expert, block_experts, num_blocks, num_tiles, num_steps, GROUP
        )
        a = hidden.load([block * BLOCK_M, step * BLOCK_K])
        total = tl.dot(a, down.load([expert * width + tile * BLOCK_N, step * BLOCK_K]).T, total)
        if step == num_steps - 1:
            m, column = block * BLOCK_M + tl.arange(0, BLOCK_M), tile * BLOCK_N + tl.arange(0, BLOCK_N)
            pair = tl.load(pairs + m)
            at = results + pair.to(tl.int64)[:, None] * width + column[None, :]
            is_wanted = (pair < num_pairs)[:, None] & (column < width)[None, :]
            tl.store(at, to_dtype(total, results.dtype.element_ty), mask=is_wanted)
            total = _new_sums(BLOCK_M, BLOCK_N)
