"""Float8 experts of few tokens, whose rows are float8 too: codes go from memory to the tensor cores as they are.

What takes most time is reading weights, and making bfloat16 of every code costs more than half the bytes save. So rows
are rounded instead (`float8.kernel.round_rows`); there are few. Weights are the left factor, of which tensor cores take
64 rows at a time, and the rows of a block are columns, so that no more than there are is computed. Between the two
products a program rounds what it has of a hidden row, `up_n` numbers, with a scale of its own: no program waits for
others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last
from vl2.ops.experts.align import align_few
from vl2.ops.experts.kernel_common import GROUP_BLOCKS, block_and_tile, rows_of_block, swish
from vl2.ops.experts.mixture import Mixture
from vl2.ops.float8.kernel import round_rows
from vl2.ops.float8.reference import SMALLEST
from vl2.ops.quantized_experts.weights import QuantizedExperts
from vl2.ops.saturate import FLOAT8
from vl2.ops.saturate_kernel import FLOAT8_MAX, to_dtype


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows of a block; for gate-up, outputs (as many of each) and inputs at a time; for down, outputs, whose inputs are
    taken `up_n` at a time."""

    block_m: int
    up_n: int
    up_k: int
    down_n: int
    num_warps: int
    num_stages: int


FEW, MORE = Tile(16, 128, 128, 128, 8, 3), Tile(64, 64, 128, 128, 4, 4)
FEW_PAIRS = 16
"""Pairs of an expert, on average, up to which `FEW` is taken."""


def choose_tile(num_tokens: int, num_active: int, num_experts: int) -> Tile:
    mean = num_tokens * num_active / num_experts
    return FEW if mean <= FEW_PAIRS else MORE


def mix_few_float8(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, experts: QuantizedExperts, tile: Tile | None = None
) -> Mixture:
    """`Backend.mix_quantized_experts` (ops/backend.py) of float8 weights; 16-bit rows are rounded to it."""
    (num_tokens, width), inner = x.shape, experts.down.in_width
    num_experts, num_active = len(experts.gate_up.codes), ids.shape[1] + experts.num_shared
    num_routed, num_pairs = num_experts - experts.num_shared, num_tokens * num_active
    tile = tile or choose_tile(num_tokens, num_active, num_experts)
    blocks, num_blocks, num_chosen = align_few(ids, num_routed, experts.num_shared, tile.block_m)
    shared = (blocks.pairs, blocks.experts, num_blocks, num_pairs, num_routed, width, inner)
    options = dict(
        NUM_CHOSEN=num_chosen, BLOCK_M=tile.block_m, GROUP=GROUP_BLOCKS,
        num_warps=tile.num_warps, num_stages=tile.num_stages, **chained(x.device),
    )  # fmt: skip

    rows, row_scales = round_rows(x)
    num_tiles = triton.cdiv(inner, tile.up_n)
    hidden = torch.empty(num_pairs, inner, dtype=FLOAT8, device=x.device)
    hidden_scales = torch.empty(num_pairs, num_tiles, dtype=torch.float32, device=x.device)
    _gate_up[(num_blocks * num_tiles,)](
        rows, row_scales, experts.gate_up.codes, experts.gate_up.scales, hidden, hidden_scales, *shared,
        NUM_ACTIVE=num_active, BLOCK_N=tile.up_n, BLOCK_K=tile.up_k, LEAST=SMALLEST,
        DTYPE=tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float16, **options,
    )  # fmt: skip
    results = torch.empty(num_pairs, width, dtype=x.dtype, device=x.device)
    _down[(num_blocks * triton.cdiv(width, tile.down_n),)](
        hidden, hidden_scales, experts.down.codes, experts.down.scales, results, *shared,
        BLOCK_N=tile.down_n, BLOCK_K=tile.up_n, **options,
    )  # fmt: skip
    return Mixture(results, weights)


@triton.jit(do_not_specialize=["num_blocks", "num_pairs"])
def _gate_up(
    rows, row_scales, codes, scales, hidden, hidden_scales, pairs, block_experts, num_blocks, num_pairs, num_routed,
    width, inner, NUM_ACTIVE: tl.constexpr, NUM_CHOSEN: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, LEAST: tl.constexpr,
    DTYPE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """rows [T, C] with scales [T], codes [E, 2F, C] with scales [E, 2F] → hidden [pairs, F] with scales [pairs, F / N].

    Swished as numbers of DTYPE, the model's.
    """
    num_tiles = tl.cdiv(inner, BLOCK_N)
    wait_for_last(CHAINED)
    block, tile = block_and_tile(tl.program_id(0), num_blocks, num_tiles, GROUP)
    expert, pair = rows_of_block(pairs, block_experts, block, num_pairs, num_routed, NUM_CHOSEN, BLOCK_M)
    if expert < 0:
        return
    is_pair, token = pair < num_pairs, pair // NUM_ACTIVE
    column, j = tile * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    is_column = column < inner
    inputs_at = rows + token.to(tl.int64)[None, :] * width + j[:, None]
    gates_at = codes + (expert.to(tl.int64) * 2 * inner + column)[:, None] * width + j[None, :]
    ups_at = gates_at + inner.to(tl.int64) * width
    gate, up = tl.zeros((BLOCK_N, BLOCK_M), tl.float32), tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for start in range(0, width, BLOCK_K):
        is_input = start + j < width
        inputs = tl.load(inputs_at + start, mask=is_pair[None, :] & is_input[:, None], other=0.0)
        gates = tl.load(gates_at + start, mask=is_column[:, None] & is_input[None, :], other=0.0)
        ups = tl.load(ups_at + start, mask=is_column[:, None] & is_input[None, :], other=0.0)
        gate = tl.dot(gates, inputs, gate, max_num_imprecise_acc=BLOCK_K)
        up = tl.dot(ups, inputs, up, max_num_imprecise_acc=BLOCK_K)
    row_scale = tl.load(row_scales + token, mask=is_pair, other=0.0)[None, :]
    scales_at = scales + expert.to(tl.int64) * 2 * inner + column
    gate *= tl.load(scales_at, mask=is_column, other=0.0)[:, None] * row_scale
    up *= tl.load(scales_at + inner, mask=is_column, other=0.0)[:, None] * row_scale
    own = swish(gate, up, DTYPE).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(own), 0), LEAST) / FLOAT8_MAX
    at = hidden + pair.to(tl.int64)[None, :] * inner + column[:, None]
    own = to_dtype(own / scale[None, :], hidden.dtype.element_ty)
    tl.store(at, own, mask=is_pair[None, :] & is_column[:, None])
    tl.store(hidden_scales + pair * num_tiles + tile, scale, mask=is_pair)


@triton.jit(do_not_specialize=["num_blocks", "num_pairs"])
def _down(
    hidden, hidden_scales, codes, scales, results, pairs, block_experts, num_blocks, num_pairs, num_routed,
    width, inner, NUM_CHOSEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """hidden [pairs, F] with scales [pairs, F / K], codes [E, C, F] with scales [E, C] → results [pairs, C]."""
    wait_for_last(CHAINED)
    block, tile = block_and_tile(tl.program_id(0), num_blocks, tl.cdiv(width, BLOCK_N), GROUP)
    expert, pair = rows_of_block(pairs, block_experts, block, num_pairs, num_routed, NUM_CHOSEN, BLOCK_M)
    if expert < 0:
        return
    is_pair = pair < num_pairs
    column, j = tile * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    is_column, steps = column < width, tl.cdiv(inner, BLOCK_K)
    inputs_at = hidden + pair.to(tl.int64)[None, :] * inner + j[:, None]
    codes_at = codes + (expert.to(tl.int64) * width + column)[:, None] * inner + j[None, :]
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(steps):
        is_input = step * BLOCK_K + j < inner
        inputs = tl.load(inputs_at + step * BLOCK_K, mask=is_pair[None, :] & is_input[:, None], other=0.0)
        own = tl.load(codes_at + step * BLOCK_K, mask=is_column[:, None] & is_input[None, :], other=0.0)
        scale = tl.load(hidden_scales + pair * steps + step, mask=is_pair, other=0.0)
        total += tl.dot(own, inputs, max_num_imprecise_acc=BLOCK_K) * scale[None, :]
    total *= tl.load(scales + expert.to(tl.int64) * width + column, mask=is_column, other=0.0)[:, None]
    at = results + pair.to(tl.int64)[None, :] * width + column[:, None]
    tl.store(at, to_dtype(total, results.dtype.element_ty), mask=is_pair[None, :] & is_column[:, None])
