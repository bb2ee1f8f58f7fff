"""`ops/experts/kernel_many.py` with float8 weights and rows: both have a scale for each row, which the sums are
multiplied with. Shared experts are further ones, and the inner rows are rounded between the two products.

The tensor core's sums of float8 are added to exact ones in each step, so it pauses anyway, and one product for gate and
up has too many sums: as one loop 8,192 tokens of Small took 1,753 µs for 1,674 (H100).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vl2.ops.experts.align import align_many
from vl2.ops.experts.boxes import box
from vl2.ops.experts.kernel_common import GROUP_BLOCKS, Tile, block_and_tile, swish
from vl2.ops.experts.kernel_many import lay_out
from vl2.ops.experts.mixture import Mixture
from vl2.ops.float8.kernel import round_rows
from vl2.ops.quantized_experts.weights import QuantizedExperts
from vl2.ops.saturate_kernel import to_dtype
from vl2.ops.tuning import num_multiprocessors, tuned

TILE = tuned("experts_float8", Tile)


def mix_many_float8(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, experts: QuantizedExperts, tile: Tile = TILE
) -> Mixture:
    """`Backend.mix_quantized_experts` (ops/backend.py) of float8 weights; 16-bit rows are rounded to it."""
    up_weights, down_weights, num_shared = experts.gate_up.codes, experts.down.codes, experts.num_shared
    num_experts, width, inner = down_weights.shape
    num_active = ids.shape[1] + num_shared
    blocks = align_many(ids, num_experts - num_shared, num_shared, tile.block_m)
    num_blocks, num_pairs, num_programs = len(blocks.experts), len(x) * num_active, num_multiprocessors(x.device)
    tokens, scales = round_rows(x)
    rows = lay_out(tokens, blocks, num_active, tile.block_m)
    hidden = torch.empty(len(rows), inner, dtype=x.dtype, device=x.device)
    options = dict(BLOCK_M=tile.block_m, GROUP=GROUP_BLOCKS, num_warps=tile.num_warps, num_stages=tile.num_stages)
    _gate_up[(min(num_blocks * triton.cdiv(inner, tile.up_n), num_programs),)](
        box(rows, tile.block_m, tile.up_k), box(up_weights.flatten(0, 1), tile.up_n, tile.up_k), hidden, scales,
        experts.gate_up.scales, blocks.pairs, blocks.experts, num_blocks, num_pairs, width, inner,
        NUM_ACTIVE=num_active, BLOCK_N=tile.up_n, BLOCK_K=tile.up_k, **options,
    )  # fmt: skip
    del rows
    hidden, scales = round_rows(hidden)
    results = torch.empty(num_pairs, width, dtype=x.dtype, device=x.device)
    _down[(min(num_blocks * triton.cdiv(width, tile.down_n), num_programs),)](
        box(hidden, tile.block_m, tile.down_k), box(down_weights.flatten(0, 1), tile.down_n, tile.down_k), results,
        scales, experts.down.scales, blocks.pairs, blocks.experts, num_blocks, num_pairs, width, inner,
        BLOCK_N=tile.down_n, BLOCK_K=tile.down_k, **options,
    )  # fmt: skip
    return Mixture(results, weights)


@triton.jit(do_not_specialize=["num_blocks", "num_pairs"])
def _gate_up(
    rows, gate_up, hidden, token_scales, scales, pairs, block_experts, num_blocks, num_pairs, width, inner,
    NUM_ACTIVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """rows [B · M, C], gate_up [E · 2F, C] → hidden [B · M, F]. A tile may reach into other rows of weights than its
    own: those columns are not stored. token_scales [T], scales [E · 2F].
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
):  # fmt: skip
    """hidden [B · M, F], down [E · C, F] → results [pairs, C]. row_scales [B · M], scales [E · C]."""
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
            scale = tl.load(scales + expert * width + column, mask=column < width, other=0.0)
            total *= tl.load(row_scales + m)[:, None] * scale[None, :]
            at = results + pair.to(tl.int64)[:, None] * width + column[None, :]
            tl.store(
                at, to_dtype(total, results.dtype.element_ty), mask=(pair < num_pairs)[:, None] & (column < width)[None]
            )
