"""Quantised experts of few tokens: a program takes a few outputs of an expert, and its warps share out the inputs.

Products of whole tiles (`kernel.py`) make the warps of a program wait for each other after each quarter of a step,
which is most of the time where a multiprocessor has a program or two. Here each warp adds up steps of its own
(`add_steps`), there are more and smaller programs, and sums are brought together once, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last, wait_then_release
from vl2.ops.experts.align import align_few
from vl2.ops.experts.kernel_common import GROUP_BLOCKS, block_and_tile, precision, rows_of_block, swish
from vl2.ops.experts.mixture import Mixture
from vl2.ops.quantized_experts.weights import QuantizedExperts
from vl2.ops.quantized_weight.kernel_common import add_steps, has_asm, lines_of_share, prefetch
from vl2.ops.quantized_weight.triton_layout import step_of
from vl2.ops.quantized_weight.weight import QuantizedWeight
from vl2.ops.saturate_kernel import to_dtype


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows of a block; outputs of a program, for gate-up (as many of each) and for down; steps of inputs that it has at
    once, and the warps that share them."""

    block_m: int
    up_n: int
    down_n: int
    splits: int
    num_warps: int
    num_stages: int


FEWEST, FEWEST_BYTES, FEW = Tile(8, 32, 32, 4, 4, 2), Tile(8, 16, 16, 2, 2, 4), Tile(8, 32, 32, 2, 2, 3)
FEWEST_TOKENS = 4
FEW_TOKENS = 8
"""Beyond, whole tiles are faster. No expert has more rows than there are tokens; tensor cores take 8 at least."""


def mix_few(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, experts: QuantizedExperts, tile: Tile | None = None
) -> Mixture:
    """`Backend.mix_quantized_experts` (ops/backend.py) of rows of 16 bits."""
    (num_tokens, width), inner = x.shape, experts.down.in_width
    fewest = FEWEST if experts.gate_up.scheme.bits == 4 else FEWEST_BYTES
    tile = tile or (fewest if num_tokens <= FEWEST_TOKENS else FEW)
    num_routed, num_active = len(experts.gate_up.codes) - experts.num_shared, ids.shape[1] + experts.num_shared
    num_pairs = num_tokens * num_active
    blocks, num_blocks, num_chosen = align_few(ids, num_routed, experts.num_shared, tile.block_m)
    shared = (blocks.pairs, blocks.experts, num_blocks, num_pairs, num_routed, width, inner)

    hidden = torch.empty(num_pairs, inner, dtype=x.dtype, device=x.device)
    _gate_up[(num_blocks * triton.cdiv(inner, tile.up_n),)](
        x, experts.gate_up.codes, experts.gate_up.scales, hidden, *shared, experts.gate_up.codes.stride(-2),
        x.stride(0), NUM_ACTIVE=num_active, NUM_CHOSEN=num_chosen, BLOCK_N=tile.up_n,
        **_settings(experts.gate_up, x, tile),
    )  # fmt: skip
    results = torch.empty(num_pairs, width, dtype=x.dtype, device=x.device)
    _down[(num_blocks * triton.cdiv(width, tile.down_n),)](
        hidden, experts.down.codes, experts.down.scales, results, *shared, experts.down.codes.stride(-2),
        NUM_CHOSEN=num_chosen, BLOCK_N=tile.down_n, LINES=lines_of_share(experts.down, triton.cdiv(width, tile.down_n)),
        **_settings(experts.down, x, tile),
    )  # fmt: skip
    return Mixture(results, weights)


def _settings(weight: QuantizedWeight, x: torch.Tensor, tile: Tile) -> dict[str, object]:
    step = step_of(weight.scheme, weight.in_width)
    return dict(
        GROUP_STEPS=(weight.scheme.group_size or weight.in_width) // step, STEP=step, BITS=weight.scheme.bits,
        BLOCK_M=tile.block_m, SPLITS=tile.splits, GROUP=GROUP_BLOCKS, HAS_ASM=has_asm(x.device),
        PRECISION=precision(x), num_warps=tile.num_warps, num_stages=tile.num_stages, **chained(x.device),
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_blocks", "num_pairs"])
def _gate_up(
    x, codes, scales, hidden, pairs, block_experts, num_blocks, num_pairs, num_routed, width, inner, row_words,
    row_stride, NUM_ACTIVE: tl.constexpr, NUM_CHOSEN: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_STEPS: tl.constexpr,
    STEP: tl.constexpr, BITS: tl.constexpr, BLOCK_M: tl.constexpr, SPLITS: tl.constexpr,
    GROUP: tl.constexpr, HAS_ASM: tl.constexpr, PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_then_release(CHAINED)  # `_down` reads the blocks before it waits
    WORDS: tl.constexpr = STEP // (4 if BITS == 4 else 1)
    block, tile = block_and_tile(tl.program_id(0), num_blocks, tl.cdiv(inner, BLOCK_N), GROUP)
    expert, pair = rows_of_block(pairs, block_experts, block, num_pairs, num_routed, NUM_CHOSEN, BLOCK_M)
    if expert < 0:
        return
    is_pair, column = pair < num_pairs, tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column, split, j = column < inner, tl.arange(0, SPLITS), tl.arange(0, WORDS)
    inputs_at = (
        x + (pair // NUM_ACTIVE).to(tl.int64)[None, None, :] * row_stride + (split[:, None] * STEP + j)[:, :, None]
    )
    gates_at = codes + (expert.to(tl.int64) * 2 * inner + column)[None, :, None] * row_words
    gates_at += (split[:, None] * WORDS + j)[:, None, :]
    ups_at = gates_at + inner.to(tl.int64) * row_words
    scales += expert.to(tl.int64) * (width // STEP // GROUP_STEPS) * 2 * inner
    num_steps = width // STEP
    gate, up = tl.zeros((SPLITS, BLOCK_N, BLOCK_M), tl.float32), tl.zeros((SPLITS, BLOCK_N, BLOCK_M), tl.float32)
    for first in range(0, num_steps, SPLITS):
        words, scale = _load(
            gates_at, scales, column, is_column, first, split, num_steps, 2 * inner, WORDS, GROUP_STEPS
        )
        up_words, up_scale = _load(
            ups_at, scales + inner, column, is_column, first, split, num_steps, 2 * inner, WORDS, GROUP_STEPS
        )
        inputs, is_input = inputs_at + first * STEP, (first + split < num_steps)[:, None, None] & is_pair[None, None, :]
        gate = add_steps(gate, words, scale, inputs, is_input, WORDS, BITS, HAS_ASM, PRECISION)
        up = add_steps(up, up_words, up_scale, inputs, is_input, WORDS, BITS, HAS_ASM, PRECISION)
    at = hidden + pair.to(tl.int64)[None, :] * inner + column[:, None]
    out = swish(tl.sum(gate, 0), tl.sum(up, 0), hidden.dtype.element_ty)
    tl.store(at, out, mask=is_pair[None, :] & is_column[:, None])


@triton.jit(do_not_specialize=["num_blocks", "num_pairs"])
def _down(
    hidden, codes, scales, results, pairs, block_experts, num_blocks, num_pairs, num_routed, width, inner, row_words,
    NUM_CHOSEN: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_STEPS: tl.constexpr, STEP: tl.constexpr,
    BITS: tl.constexpr, LINES: tl.constexpr, BLOCK_M: tl.constexpr, SPLITS: tl.constexpr, GROUP: tl.constexpr,
    HAS_ASM: tl.constexpr, PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Its strip of the weights is fetched while gate-up ends; the blocks are read before the wait, which only a kernel
    right behind `_gate_up` may."""
    WORDS: tl.constexpr = STEP // (4 if BITS == 4 else 1)
    block, tile = block_and_tile(tl.program_id(0), num_blocks, tl.cdiv(width, BLOCK_N), GROUP)
    expert, pair = rows_of_block(pairs, block_experts, block, num_pairs, num_routed, NUM_CHOSEN, BLOCK_M)
    if CHAINED and expert >= 0:
        own = (expert.to(tl.int64) * width + tile * BLOCK_N) * row_words
        prefetch(codes, own, own + min(BLOCK_N, width - tile * BLOCK_N) * row_words, LINES)
    wait_for_last(CHAINED)
    if expert < 0:
        return
    is_pair, column = pair < num_pairs, tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column, split, j = column < width, tl.arange(0, SPLITS), tl.arange(0, WORDS)
    inputs_at = hidden + pair.to(tl.int64)[None, None, :] * inner + (split[:, None] * STEP + j)[:, :, None]
    words_at = codes + (expert.to(tl.int64) * width + column)[None, :, None] * row_words
    words_at += (split[:, None] * WORDS + j)[:, None, :]
    scales += expert.to(tl.int64) * (inner // STEP // GROUP_STEPS) * width
    num_steps = inner // STEP
    total = tl.zeros((SPLITS, BLOCK_N, BLOCK_M), tl.float32)
    for first in range(0, num_steps, SPLITS):
        words, scale = _load(words_at, scales, column, is_column, first, split, num_steps, width, WORDS, GROUP_STEPS)
        inputs, is_input = inputs_at + first * STEP, (first + split < num_steps)[:, None, None] & is_pair[None, None, :]
        total = add_steps(total, words, scale, inputs, is_input, WORDS, BITS, HAS_ASM, PRECISION)
    at = results + pair.to(tl.int64)[None, :] * width + column[:, None]
    tl.store(at, to_dtype(tl.sum(total, 0), results.dtype.element_ty), mask=is_pair[None, :] & is_column[:, None])


@triton.jit
def _load(
    words_at, scales, column, is_column, first, split, num_steps, num_columns, WORDS: tl.constexpr,
    GROUP_STEPS: tl.constexpr,
):  # fmt: skip
    """(words [S, N, W], scale [S, N]) of S steps from `first` on; `words_at`: those of the first S."""
    is_step = first + split < num_steps
    words = tl.load(words_at + first * WORDS, mask=is_step[:, None, None] & is_column[None, :, None], other=0.0)
    scales_at = scales + ((first + split) // GROUP_STEPS * num_columns)[:, None] + column[None, :]
    return words, tl.load(scales_at, mask=is_step[:, None] & is_column[None, :], other=0.0)
