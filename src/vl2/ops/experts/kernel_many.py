"""Experts of a prompt's many tokens: rows are laid out in blocks of one expert each, and tiles come as whole boxes.

What differs from `kernel.py`: a block's rows lie side by side, so the copy engine (TMA) brings tiles of rows and of
weights to shared memory without a thread computing addresses; programs stay and take one tile after the other; the
shared experts, which every token takes, are two plain matrix products.

float8 weights are multiplied with float8 rows, both with a scale for each row, which are multiplied onto the sums; then
shared experts are further ones, and the inner rows are rounded between the two products.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from vl2.ops.experts.align import align_many
from vl2.ops.experts.boxes import box
from vl2.ops.experts.kernel_common import GROUP_BLOCKS, Tile, block_and_tile, swiglu, swish
from vl2.ops.experts.mixture import Mixture
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.float8.kernel import round_rows
from vl2.ops.quantized_experts.weights import QuantizedExperts
from vl2.ops.saturate import saturate
from vl2.ops.saturate_kernel import to_dtype
from vl2.ops.tuning import tuned

TILE, FLOAT8_TILE = tuned("experts_many", Tile), tuned("experts_float8", Tile)


def mix_many(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, experts: ExpertWeights, tile: Tile = TILE
) -> Mixture:
    """`Backend.mix_experts` (ops/backend.py) of 16-bit rows."""
    results = _results(x, ids, (experts.gate_up, None), (experts.down, None), 0, tile)
    return Mixture(results, weights, _shared(x, experts))


def mix_many_float8(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, experts: QuantizedExperts, tile: Tile = FLOAT8_TILE
) -> Mixture:
    """`Backend.mix_quantized_experts` (ops/backend.py) of float8 weights; 16-bit rows are rounded to it."""
    gate_up, down = ((weight.codes, weight.scales) for weight in (experts.gate_up, experts.down))
    return Mixture(_results(x, ids, gate_up, down, experts.num_shared, tile), weights)


def _results(
    x: torch.Tensor,
    ids: torch.Tensor,
    gate_up: tuple[torch.Tensor, torch.Tensor | None],
    down: tuple[torch.Tensor, torch.Tensor | None],
    num_shared: int,
    tile: Tile,
) -> torch.Tensor:
    """[T · (A + S), C] of each token's pairs. float8 weights [E + S, Out, In] have scales [E + S, 1, Out]."""
    (up_weights, up_scales), (down_weights, down_scales) = gate_up, down
    (num_tokens, width), inner, num_active = x.shape, down_weights.shape[2], ids.shape[1] + num_shared
    blocks = align_many(ids, len(down_weights) - num_shared, num_shared, tile.block_m)
    num_blocks, num_pairs = len(blocks.experts), num_tokens * num_active
    tokens, scales = (x, x) if up_scales is None else round_rows(x)
    rows = torch.empty(num_blocks * tile.block_m, width, dtype=tokens.dtype, device=x.device)
    _lay_out[(num_tokens,)](
        tokens, rows, blocks.places, width, tokens.stride(0), NUM_ACTIVE=num_active,
        BLOCK_C=min(2048, triton.next_power_of_2(width)),
    )  # fmt: skip
    hidden = torch.empty(len(rows), inner, dtype=x.dtype, device=x.device)
    options = dict(
        BLOCK_M=tile.block_m, GROUP=GROUP_BLOCKS, HAS_SCALES=up_scales is not None, num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )  # fmt: skip
    num_tiles = num_blocks * triton.cdiv(inner, tile.up_n)
    _gate_up[(min(num_tiles, num_programs(x.device)),)](
        box(rows, tile.block_m, tile.up_k), box(up_weights.flatten(0, 1), tile.up_n, tile.up_k), hidden, scales,
        x if up_scales is None else up_scales, blocks.pairs, blocks.experts, num_blocks, num_pairs, width, inner,
        NUM_ACTIVE=num_active, BLOCK_N=tile.up_n, BLOCK_K=tile.up_k, **options,
    )  # fmt: skip
    hidden, scales = (hidden, x) if down_scales is None else round_rows(hidden)
    results = torch.empty(num_pairs, width, dtype=x.dtype, device=x.device)
    num_tiles = num_blocks * triton.cdiv(width, tile.down_n)
    _down[(min(num_tiles, num_programs(x.device)),)](
        box(hidden, tile.block_m, tile.down_k), box(down_weights.flatten(0, 1), tile.down_n, tile.down_k), results,
        scales, x if down_scales is None else down_scales, blocks.pairs, blocks.experts, num_blocks, num_pairs, width,
        inner, BLOCK_N=tile.down_n, BLOCK_K=tile.down_k, **options,
    )  # fmt: skip
    return results


def _shared(x: torch.Tensor, experts: ExpertWeights) -> torch.Tensor | None:
    """What all tokens take."""
    if experts.shared_gate_up is None or experts.shared_down is None:
        return None
    inner = swiglu(saturate(torch.mm(x, experts.shared_gate_up.t())))
    return saturate(torch.mm(inner, experts.shared_down.t()))


@functools.cache
def num_programs(device: torch.device) -> int:
    """One for each multiprocessor; in the interpreter a few, so that each has more than one tile."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


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


@triton.jit(do_not_specialize=["num_blocks", "num_pairs"])
def _gate_up(
    rows, gate_up, hidden, token_scales, scales, pairs, block_experts, num_blocks, num_pairs, width, inner,
    NUM_ACTIVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    HAS_SCALES: tl.constexpr,
):  # fmt: skip
    """rows [B · M, C], gate_up [E · 2F, C] → hidden [B · M, F]. A tile may reach into other rows of weights than its
    own: those columns are not stored. float8: token_scales [T], scales [E · 2F].
    """
    num_tiles = tl.cdiv(inner, BLOCK_N)
    for number in range(tl.program_id(0), num_blocks * num_tiles, tl.num_programs(0)):
        block, tile = block_and_tile(number, num_blocks, num_tiles, GROUP)
        expert = tl.load(block_experts + block)
        if expert >= 0:
            first = expert * 2 * inner + tile * BLOCK_N
            gate, up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32), tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for k in range(0, width, BLOCK_K):
                a = rows.load([block * BLOCK_M, k])
                gate = tl.dot(a, gate_up.load([first, k]).T, gate, max_num_imprecise_acc=BLOCK_K)
                up = tl.dot(a, gate_up.load([first + inner, k]).T, up, max_num_imprecise_acc=BLOCK_K)
            m, column = block * BLOCK_M + tl.arange(0, BLOCK_M), tile * BLOCK_N + tl.arange(0, BLOCK_N)
            if HAS_SCALES:
                pair, at_column = tl.load(pairs + m), scales + expert * 2 * inner + column
                token_scale = tl.load(token_scales + pair // NUM_ACTIVE, mask=pair < num_pairs, other=0.0)[:, None]
                gate *= token_scale * tl.load(at_column, mask=column < inner, other=0.0)[None, :]
                up *= token_scale * tl.load(at_column + inner, mask=column < inner, other=0.0)[None, :]
            at = hidden + m.to(tl.int64)[:, None] * inner + column[None, :]
            tl.store(at, swish(gate, up, hidden.dtype.element_ty), mask=(column < inner)[None, :])


@triton.jit(do_not_specialize=["num_blocks", "num_pairs"])
def _down(
    hidden, down, results, row_scales, scales, pairs, block_experts, num_blocks, num_pairs, width, inner,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    HAS_SCALES: tl.constexpr,
):  # fmt: skip
    """hidden [B · M, F], down [E · C, F] → results [pairs, C]. float8: row_scales [B · M], scales [E · C]."""
    num_tiles = tl.cdiv(width, BLOCK_N)
    for number in range(tl.program_id(0), num_blocks * num_tiles, tl.num_programs(0)):
        block, tile = block_and_tile(number, num_blocks, num_tiles, GROUP)
        expert = tl.load(block_experts + block)
        if expert >= 0:
            first = expert * width + tile * BLOCK_N
            total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for k in range(0, inner, BLOCK_K):
                a, b = hidden.load([block * BLOCK_M, k]), down.load([first, k]).T
                total = tl.dot(a, b, total, max_num_imprecise_acc=BLOCK_K)
            m, column = block * BLOCK_M + tl.arange(0, BLOCK_M), tile * BLOCK_N + tl.arange(0, BLOCK_N)
            pair = tl.load(pairs + m)
            if HAS_SCALES:
                scale = tl.load(scales + expert * width + column, mask=column < width, other=0.0)
                total *= tl.load(row_scales + m)[:, None] * scale[None, :]
            at = results + pair.to(tl.int64)[:, None] * width + column[None, :]
            tl.store(
                at, to_dtype(total, results.dtype.element_ty), mask=(pair < num_pairs)[:, None] & (column < width)[None]
            )
