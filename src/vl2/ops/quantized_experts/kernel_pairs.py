"""Quantised experts of a few tokens: each chosen expert is read for its token alone, a strip of outputs a program.

Pairs of one expert lie side by side in the grid, so that what one of them has read is still in the card's cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last
from vl2.ops.quantized_experts.weights import QuantizedExperts
from vl2.ops.quantized_weight.kernel_rows import strip_sums
from vl2.ops.quantized_weight.triton_layout import step_of
from vl2.ops.quantized_weight.weight import QuantizedWeight


@dataclass(frozen=True, slots=True)
class Strip:
    """Outputs of a program, for gate-up (as many of each) and for down, and words of a row taken at a time."""

    up_n: int
    down_n: int
    words: int
    num_warps: int


def results_of_pairs(x, ids, experts: QuantizedExperts, strip: Strip, has_asm: bool) -> torch.Tensor:
    num_tokens, width = x.shape
    num_routed = len(experts.gate_up.codes) - experts.num_shared
    num_chosen, inner = ids.shape[1], experts.down.in_width
    num_active = num_chosen + experts.num_shared
    num_pairs = num_tokens * num_active
    shapes = dict(NUM_ACTIVE=num_active, NUM_CHOSEN=num_chosen)
    hidden = torch.empty(num_pairs, inner, dtype=x.dtype, device=x.device)
    _gate_up[num_pairs, triton.cdiv(inner, strip.up_n)](
        x, experts.gate_up.codes, experts.gate_up.scales, ids, hidden, num_routed, width, inner, x.stride(0),
        experts.gate_up.codes.stride(-2), **shapes, BLOCK_N=strip.up_n, **_settings(experts.gate_up, x, strip, has_asm),
    )  # fmt: skip
    results = torch.empty(num_pairs, width, dtype=x.dtype, device=x.device)
    _down[num_pairs, triton.cdiv(width, strip.down_n)](
        hidden, experts.down.codes, experts.down.scales, ids, results, num_routed, width, inner,
        experts.down.codes.stride(-2), **shapes, BLOCK_N=strip.down_n, **_settings(experts.down, x, strip, has_asm),
    )  # fmt: skip
    return results


def _settings(weight: QuantizedWeight, x: torch.Tensor, strip: Strip, has_asm: bool) -> dict[str, object]:
    step = step_of(weight.scheme, weight.in_width)
    return dict(
        BLOCK_W=strip.words, GROUP_STEPS=(weight.scheme.group_size or weight.in_width) // step, STEP=step,
        BITS=weight.scheme.bits, HAS_ASM=has_asm, num_warps=strip.num_warps, **chained(x.device),
    )  # fmt: skip


@triton.jit
def _expert(ids, pair, num_routed, NUM_ACTIVE: tl.constexpr, NUM_CHOSEN: tl.constexpr):
    """Whose pair this is: chosen ones come first, then those that every token has."""
    token, choice = pair // NUM_ACTIVE, pair % NUM_ACTIVE
    chosen = tl.load(ids + token * NUM_CHOSEN + choice, mask=choice < NUM_CHOSEN, other=0)
    return token, tl.where(choice < NUM_CHOSEN, chosen, num_routed + choice - NUM_CHOSEN).to(tl.int64)


@triton.jit
def _gate_up(
    x, codes, scales, ids, hidden, num_routed, width, inner, row_stride, row_words,
    NUM_ACTIVE: tl.constexpr, NUM_CHOSEN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
    GROUP_STEPS: tl.constexpr, STEP: tl.constexpr, BITS: tl.constexpr, HAS_ASM: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_last(CHAINED)
    pair = tl.program_id(0)
    token, expert = _expert(ids, pair, num_routed, NUM_ACTIVE, NUM_CHOSEN)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = column < inner
    words = codes + (expert * 2 * inner + column) * row_words
    scales += expert * (width // STEP // GROUP_STEPS) * 2 * inner
    row = x + token.to(tl.int64) * row_stride
    gate = strip_sums(
        words, scales + column, is_column, 2 * inner, row, width, BLOCK_N, BLOCK_W, GROUP_STEPS, STEP, BITS, HAS_ASM
    )
    up = strip_sums(
        words + inner.to(tl.int64) * row_words, scales + inner + column, is_column, 2 * inner, row, width,
        BLOCK_N, BLOCK_W, GROUP_STEPS, STEP, BITS, HAS_ASM,
    )  # fmt: skip
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(hidden + pair.to(tl.int64) * inner + column, out.to(hidden.dtype.element_ty), mask=is_column)


@triton.jit
def _down(
    hidden, codes, scales, ids, results, num_routed, width, inner, row_words,
    NUM_ACTIVE: tl.constexpr, NUM_CHOSEN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
    GROUP_STEPS: tl.constexpr, STEP: tl.constexpr, BITS: tl.constexpr, HAS_ASM: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_last(CHAINED)
    pair = tl.program_id(0)
    _, expert = _expert(ids, pair, num_routed, NUM_ACTIVE, NUM_CHOSEN)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = column < width
    total = strip_sums(
        codes + (expert * width + column) * row_words,
        scales + expert * (inner // STEP // GROUP_STEPS) * width + column, is_column, width, hidden + pair.to(tl.int64) * inner, inner, BLOCK_N, BLOCK_W, GROUP_STEPS, STEP, BITS, HAS_ASM,
    )  # fmt: skip
    tl.store(results + pair.to(tl.int64) * width + column, total.to(results.dtype.element_ty), mask=is_column)
