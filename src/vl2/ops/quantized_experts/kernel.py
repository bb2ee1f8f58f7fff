"""`ops/experts/kernel.py` with quantised weights, whose products are those of `ops/quantized_linear/kernel.py`.

Rows of 16 bits and float8 weights have kernels of their own, as such rows become float8 too. The row of a single token,
which tensor cores have no work with, goes by all weights of 8 bits as by those of 16 (ops/experts/kernel_one.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last
from vl2.ops.experts.align import align_few
from vl2.ops.experts.kernel import mix_experts
from vl2.ops.experts.kernel_common import GROUP_BLOCKS, block_and_tile, precision, rows_of_block, swish
from vl2.ops.experts.kernel_one import mix_single
from vl2.ops.experts.mixture import Mixture
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.quantized_experts.kernel_few import FEW_TOKENS, mix_few
from vl2.ops.quantized_experts.kernel_float8 import mix_few_float8
from vl2.ops.quantized_experts.kernel_held import mix_held
from vl2.ops.quantized_experts.kernel_many import mix_many_float8
from vl2.ops.quantized_experts.weights import QuantizedExperts
from vl2.ops.quantized_linear.kernel import dequantize
from vl2.ops.quantized_weight.kernel_common import add_step, has_asm
from vl2.ops.quantized_weight.triton_layout import step_of
from vl2.ops.quantized_weight.weight import QuantizedWeight
from vl2.ops.rows import RowRounding
from vl2.ops.saturate_kernel import to_dtype


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows of a block; outputs of a tile, for gate-up (as many of each) and for down."""

    block_m: int
    up_n: int
    down_n: int
    scales_first: bool  # into the weights, before the product
    num_warps: int
    num_stages: int


FEW, SOME, MANY = (
    Tile(16, 64, 64, False, 4, 4),
    Tile(32, 64, 64, False, 4, 3),
    Tile(128, 128, 128, True, 8, 3),
)
FLOAT32 = Tile(16, 32, 32, False, 4, 2)
FEW_PAIRS, SOME_PAIRS = 16, 64
"""Pairs of an expert, on average, up to which a tile is taken."""
HELD_TOKENS = 2
"""Up to so many, at most 8, codes of 4 bits are held in registers; 4 tokens were as fast without, 8 faster (H100)."""
DEQUANTIZE_TOKENS = 3072
"""From here on a layer's experts are written out in 16 bits: reading and writing them takes less time than unpacking
them once for every block of rows."""


def choose_tile(num_pairs: int, num_experts: int, dtype: torch.dtype) -> Tile:
    if dtype == torch.float32:
        return FLOAT32
    mean = num_pairs / num_experts
    return FEW if mean <= FEW_PAIRS else SOME if mean <= SOME_PAIRS else MANY


def mix_quantized_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    experts: QuantizedExperts,
    rounding: RowRounding = RowRounding(),
) -> Mixture:
    """`Backend.mix_quantized_experts` (ops/backend.py)."""
    if are_held(len(x), x.dtype, experts):
        return mix_held(x, ids, weights, experts)
    if are_single(len(x), x.dtype, experts):
        return mix_single(x, ids, weights, experts, experts.num_shared)
    num_experts = len(experts.gate_up.codes)
    tile = choose_tile(len(x) * (ids.shape[1] + experts.num_shared), num_experts, x.dtype)
    if x.dtype != torch.float32 and experts.gate_up.scheme.is_float and experts.down.scheme.is_float:
        return (mix_many_float8 if tile is MANY else mix_few_float8)(x, ids, weights, experts)
    if len(x) >= DEQUANTIZE_TOKENS and x.dtype != torch.float32:
        return mix_written_out(x, ids, weights, experts)
    if len(x) <= FEW_TOKENS and x.dtype != torch.float32:
        return mix_few(x, ids, weights, experts)
    return mix_with_tile(x, ids, weights, experts, tile)


def are_held(num_tokens: int, dtype: torch.dtype, experts: QuantizedExperts) -> bool:
    """Whether so many rows go to `mix_held`."""
    all_4 = experts.gate_up.scheme.bits == experts.down.scheme.bits == 4
    return num_tokens <= HELD_TOKENS and all_4 and dtype != torch.float32


def are_single(num_tokens: int, dtype: torch.dtype, experts: QuantizedExperts) -> bool:
    """Whether so many rows go to `mix_single`."""
    all_8 = experts.gate_up.scheme.bits == experts.down.scheme.bits == 8
    return num_tokens == 1 and all_8 and dtype != torch.float32


def mix_written_out(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, experts: QuantizedExperts) -> Mixture:
    """By the kernels of 16-bit weights; shared experts are further choices of weight 1."""
    written = (dequantize(weight, x.dtype) for weight in (experts.gate_up, experts.down))
    return mix_experts(x, *experts.with_shared(ids, weights), ExpertWeights(*written, None, None))


def mix_with_tile(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, experts: QuantizedExperts, tile: Tile
) -> Mixture:
    num_tokens, width = x.shape
    num_routed = len(experts.gate_up.codes) - experts.num_shared
    num_active = ids.shape[1] + experts.num_shared
    inner = experts.down.in_width
    blocks, num_blocks, num_chosen = align_few(ids, num_routed, experts.num_shared, tile.block_m)
    shared = (blocks.pairs, blocks.experts, num_blocks, num_tokens * num_active, num_routed)

    hidden = torch.empty(num_tokens * num_active, inner, dtype=x.dtype, device=x.device)
    _gate_up[(num_blocks * triton.cdiv(inner, tile.up_n),)](
        x, experts.gate_up.codes, experts.gate_up.scales, hidden, *shared, width, inner,
        experts.gate_up.codes.stride(-2), x.stride(0),
        NUM_ACTIVE=num_active, NUM_CHOSEN=num_chosen, BLOCK_N=tile.up_n, **_settings(experts.gate_up, x, tile),
    )  # fmt: skip
    results = torch.empty(num_tokens * num_active, width, dtype=x.dtype, device=x.device)
    _down[(num_blocks * triton.cdiv(width, tile.down_n),)](
        hidden, experts.down.codes, experts.down.scales, results, *shared, width, inner, experts.down.codes.stride(-2),
        NUM_CHOSEN=num_chosen, BLOCK_N=tile.down_n, **_settings(experts.down, x, tile),
    )  # fmt: skip
    return Mixture(results, weights)


def _settings(weight: QuantizedWeight, x: torch.Tensor, tile: Tile) -> dict[str, object]:
    step = step_of(weight.scheme, weight.in_width)
    return dict(
        GROUP_STEPS=(weight.scheme.group_size or weight.in_width) // step, STEP=step, BITS=weight.scheme.bits,
        SCALES_FIRST=tile.scales_first, BLOCK_M=tile.block_m, GROUP=GROUP_BLOCKS, HAS_ASM=has_asm(x.device),
        PRECISION=precision(x), num_warps=tile.num_warps, num_stages=tile.num_stages, **chained(x.device),
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_blocks", "num_pairs"])
def _gate_up(
    x, codes, scales, hidden, pairs, block_experts, num_blocks, num_pairs, num_routed, width, inner, row_words,
    row_stride, NUM_ACTIVE: tl.constexpr, NUM_CHOSEN: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_STEPS: tl.constexpr,
    STEP: tl.constexpr, BITS: tl.constexpr, SCALES_FIRST: tl.constexpr, BLOCK_M: tl.constexpr, GROUP: tl.constexpr,
    HAS_ASM: tl.constexpr, PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_last(CHAINED)
    PLANES: tl.constexpr = 4 if BITS == 4 else 1
    WORDS: tl.constexpr = STEP // PLANES
    block, tile = block_and_tile(tl.program_id(0), num_blocks, tl.cdiv(inner, BLOCK_N), GROUP)
    expert, pair = rows_of_block(pairs, block_experts, block, num_pairs, num_routed, NUM_CHOSEN, BLOCK_M)
    if expert < 0:
        return
    is_pair = pair < num_pairs
    column, j = tile * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, WORDS)
    is_column = column < inner
    inputs_at = x + (pair // NUM_ACTIVE).to(tl.int64)[None, :] * row_stride + j[:, None]
    gates_at = codes + (expert.to(tl.int64) * 2 * inner + column)[:, None] * row_words + j[None, :]
    ups_at = gates_at + inner.to(tl.int64) * row_words
    scales_at = scales + expert.to(tl.int64) * (width // STEP // GROUP_STEPS) * 2 * inner + column
    gate, up = tl.zeros((BLOCK_N, BLOCK_M), tl.float32), tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(width // STEP):
        gates = tl.load(gates_at + step * WORDS, mask=is_column[:, None], other=0.0)
        ups = tl.load(ups_at + step * WORDS, mask=is_column[:, None], other=0.0)
        gate_scale = tl.load(scales_at + step // GROUP_STEPS * 2 * inner, mask=is_column, other=0.0)
        up_scale = tl.load(scales_at + step // GROUP_STEPS * 2 * inner + inner, mask=is_column, other=0.0)
        inputs = inputs_at + step * STEP
        gate = add_step(gate, gates, gate_scale, inputs, is_pair, WORDS, BITS, SCALES_FIRST, HAS_ASM, PRECISION)
        up = add_step(up, ups, up_scale, inputs, is_pair, WORDS, BITS, SCALES_FIRST, HAS_ASM, PRECISION)
    at = hidden + pair.to(tl.int64)[None, :] * inner + column[:, None]
    tl.store(at, swish(gate, up, hidden.dtype.element_ty), mask=is_pair[None, :] & is_column[:, None])


@triton.jit(do_not_specialize=["num_blocks", "num_pairs"])
def _down(
    hidden, codes, scales, results, pairs, block_experts, num_blocks, num_pairs, num_routed, width, inner, row_words,
    NUM_CHOSEN: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_STEPS: tl.constexpr, STEP: tl.constexpr,
    BITS: tl.constexpr, SCALES_FIRST: tl.constexpr, BLOCK_M: tl.constexpr, GROUP: tl.constexpr, HAS_ASM: tl.constexpr,
    PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_last(CHAINED)
    PLANES: tl.constexpr = 4 if BITS == 4 else 1
    WORDS: tl.constexpr = STEP // PLANES
    block, tile = block_and_tile(tl.program_id(0), num_blocks, tl.cdiv(width, BLOCK_N), GROUP)
    expert, pair = rows_of_block(pairs, block_experts, block, num_pairs, num_routed, NUM_CHOSEN, BLOCK_M)
    if expert < 0:
        return
    is_pair = pair < num_pairs
    column, j = tile * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, WORDS)
    is_column = column < width
    inputs_at = hidden + pair.to(tl.int64)[None, :] * inner + j[:, None]
    words_at = codes + (expert.to(tl.int64) * width + column)[:, None] * row_words + j[None, :]
    scales_at = scales + expert.to(tl.int64) * (inner // STEP // GROUP_STEPS) * width + column
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(inner // STEP):
        words = tl.load(words_at + step * WORDS, mask=is_column[:, None], other=0.0)
        scale = tl.load(scales_at + step // GROUP_STEPS * width, mask=is_column, other=0.0)
        total = add_step(
            total, words, scale, inputs_at + step * STEP, is_pair, WORDS, BITS, SCALES_FIRST, HAS_ASM, PRECISION
        )
    at = results + pair.to(tl.int64)[None, :] * width + column[:, None]
    tl.store(at, to_dtype(total, results.dtype.element_ty), mask=is_pair[None, :] & is_column[:, None])
