"""Experts in 4 bits of up to 8 tokens, whose codes a program holds in registers (`quantized_weight/kernel_held.py`).

A layer of one token is read in little more than ten microseconds: a loop that waits for memory a few times is half of
that. So a program asks for all that it needs of its expert at once; of shared experts of a single token, which need no
choice, and of what `down` needs before the kernel ahead has ended. Its choice may be left to gate-up, as of experts in
16 bits (`experts/kernel_one.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last, wait_then_release
from vl2.ops.experts.align import align_few
from vl2.ops.experts.kernel_common import GROUP_BLOCKS, block_and_tile, rows_of_block, swish
from vl2.ops.experts.mixture import Mixture
from vl2.ops.gate.kernel_common import Undecided, decide_single, find, parts_of_choice
from vl2.ops.quantized_experts.weights import QuantizedExperts
from vl2.ops.quantized_weight.kernel_held import (
    ROWS,
    held_form,
    load_scales,
    load_words,
    multiply_held,
    multiply_rest_held,
)
from vl2.ops.saturate_kernel import to_dtype


@dataclass(frozen=True, slots=True)
class Tile:
    """Outputs of a program, for gate-up (as many of each; eights) and for down (sixteens); words of each that it
    holds at once, and the warps that share them."""

    up_n: int
    down_n: int
    words: int
    num_warps: int


ONE, FEW = Tile(8, 32, 512, 2), Tile(16, 32, 256, 4)


def mix_held(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    experts: QuantizedExperts,
    tile: Tile | None = None,
    undecided: Undecided | None = None,
) -> Mixture:
    """`Backend.mix_quantized_experts` (ops/backend.py) of up to 8 rows of 16 bits. A single one's ids and weights that
    are undecided are filled in."""
    assert experts.gate_up.scheme.bits == experts.down.scheme.bits == 4
    (num_tokens, width), inner = x.shape, experts.down.in_width
    tile = tile or (ONE if num_tokens == 1 else FEW)
    num_routed, num_active = len(experts.gate_up.codes) - experts.num_shared, ids.shape[1] + experts.num_shared
    num_pairs = num_tokens * num_active
    blocks, num_blocks, num_chosen = align_few(ids, num_routed, experts.num_shared, ROWS)
    shared = (blocks.pairs, blocks.experts, num_blocks, num_pairs, num_routed, width, inner)
    options = dict(NUM_CHOSEN=num_chosen, num_warps=tile.num_warps, num_stages=1, **chained(x.device))

    by, forms = parts_of_choice(undecided, weights)
    hidden = torch.empty(num_pairs, inner, dtype=x.dtype, device=x.device)
    _gate_up[((undecided is not None) + num_blocks * triton.cdiv(inner, tile.up_n),)](
        x, experts.gate_up.codes, experts.gate_up.scales, hidden, *shared, experts.gate_up.codes.stride(-2),
        x.stride(0), weights, *by, **forms, NUM_WARPS=tile.num_warps, NUM_ACTIVE=num_active, BLOCK_N=2 * tile.up_n,
        GROUP=GROUP_BLOCKS, **held_form(experts.gate_up, tile.words), **options,
    )  # fmt: skip
    results = torch.empty(num_pairs, width, dtype=x.dtype, device=x.device)
    _down[(num_blocks * triton.cdiv(width, tile.down_n),)](
        hidden, experts.down.codes, experts.down.scales, results, *shared, experts.down.codes.stride(-2),
        BLOCK_N=tile.down_n, GROUP=GROUP_BLOCKS, **held_form(experts.down, tile.words), **options,
    )  # fmt: skip
    return Mixture(results, weights)


@triton.jit
def _block_and_tile(number, num_blocks, num_tiles, NUM_CHOSEN: tl.constexpr, GROUP: tl.constexpr):
    """As `block_and_tile`; of a single token shared experts come first, which are its last blocks."""
    if NUM_CHOSEN == 0:
        block, tile = block_and_tile(number, num_blocks, num_tiles, GROUP)
    else:
        block, tile = (number // num_tiles + NUM_CHOSEN) % num_blocks, number % num_tiles
    return block, tile


@triton.jit(do_not_specialize=["num_blocks", "num_pairs"])
def _gate_up(
    x, codes, scales, hidden, pairs, block_experts, num_blocks, num_pairs, num_routed, width, inner, row_words,
    row_stride, weights, logits, bias, num_experts, scaling, HAS_BIAS: tl.constexpr, IS_SOFTMAX: tl.constexpr,
    NORMS: tl.constexpr, BLOCK_E: tl.constexpr, NUM_WARPS: tl.constexpr, NUM_ACTIVE: tl.constexpr,
    NUM_CHOSEN: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_STEPS: tl.constexpr, NUM_STEPS: tl.constexpr,
    WORDS: tl.constexpr, PLANES: tl.constexpr, BLOCK_S: tl.constexpr, GROUP: tl.constexpr, HAS_ASM: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Gate rows are the first halves, up rows the others. `_down` reads the blocks before it waits, so it is let start
    only when this kernel has them. Without a BLOCK_E the choice has been made."""
    OWN: tl.constexpr = BLOCK_N // 2
    number = tl.program_id(0)
    if BLOCK_E > 0:
        if number == 0:
            decide_single(
                logits, bias, num_experts, block_experts, weights, scaling, NUM_CHOSEN, HAS_BIAS, IS_SOFTMAX, NORMS,
                BLOCK_E, CHAINED,
            )  # fmt: skip
            return
        number -= 1
    block, tile = _block_and_tile(number, num_blocks, tl.cdiv(inner, OWN), NUM_CHOSEN, GROUP)
    if BLOCK_E > 0:
        expert, pair = num_routed + block - NUM_CHOSEN, tl.where(tl.arange(0, 8) == 0, block, num_pairs)
        if block < NUM_CHOSEN:
            expert = find(logits, bias, num_experts, block, HAS_BIAS, IS_SOFTMAX, BLOCK_E, NUM_WARPS, CHAINED)
    else:
        if NUM_CHOSEN == 0 or block < NUM_CHOSEN:
            wait_then_release(CHAINED)
        expert, pair = rows_of_block(pairs, block_experts, block, num_pairs, num_routed, NUM_CHOSEN, 8)
    if expert < 0:
        return
    limit = inner - tile * OWN
    codes += (expert.to(tl.int64) * 2 * inner + tile * OWN) * row_words
    scales += expert.to(tl.int64) * (NUM_STEPS // GROUP_STEPS) * 2 * inner + tile * OWN
    words = load_words(codes, limit, inner, 0, NUM_STEPS, row_words, BLOCK_N, True, WORDS, BLOCK_S)
    scale = load_scales(scales, limit, inner, 0, NUM_STEPS, 2 * inner, GROUP_STEPS, BLOCK_N, True, BLOCK_S)
    wait_then_release(CHAINED)
    rows_at = x + _rows(pair, num_pairs) // NUM_ACTIVE * row_stride
    total = multiply_held(words, scale, rows_at, 0, NUM_STEPS, BLOCK_N, WORDS, PLANES, BLOCK_S, HAS_ASM)
    total = multiply_rest_held(
        total, codes, scales, limit, inner, rows_at, NUM_STEPS, row_words, 2 * inner, GROUP_STEPS, BLOCK_N, True, WORDS,
        PLANES, BLOCK_S, HAS_ASM,
    )  # fmt: skip
    gate, up = tl.split(tl.permute(total.reshape(BLOCK_N // 16, 2, 8, 8), (0, 2, 3, 1)))
    column = tl.arange(0, BLOCK_N // 16)[:, None, None] * 8 + tl.arange(0, 8)[None, :, None]
    at = hidden + pair.to(tl.int64)[None, None, :] * inner + tile * OWN + column
    tl.store(at, swish(gate, up, hidden.dtype.element_ty), mask=(pair < num_pairs)[None, None, :] & (column < limit))


@triton.jit(do_not_specialize=["num_blocks", "num_pairs"])
def _down(
    hidden, codes, scales, results, pairs, block_experts, num_blocks, num_pairs, num_routed, width, inner, row_words,
    NUM_CHOSEN: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_STEPS: tl.constexpr, NUM_STEPS: tl.constexpr,
    WORDS: tl.constexpr, PLANES: tl.constexpr, BLOCK_S: tl.constexpr, GROUP: tl.constexpr, HAS_ASM: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Reads the blocks before it waits, which only a kernel right behind `_gate_up` may."""
    block, tile = _block_and_tile(tl.program_id(0), num_blocks, tl.cdiv(width, BLOCK_N), NUM_CHOSEN, GROUP)
    expert, pair = rows_of_block(pairs, block_experts, block, num_pairs, num_routed, NUM_CHOSEN, 8)
    limit = tl.where(expert < 0, 0, width - tile * BLOCK_N)
    own = tl.maximum(expert, 0).to(tl.int64)
    codes += (own * width + tile * BLOCK_N) * row_words
    scales += own * (NUM_STEPS // GROUP_STEPS) * width + tile * BLOCK_N
    words = load_words(codes, limit, 0, 0, NUM_STEPS, row_words, BLOCK_N, False, WORDS, BLOCK_S)
    scale = load_scales(scales, limit, 0, 0, NUM_STEPS, width, GROUP_STEPS, BLOCK_N, False, BLOCK_S)
    wait_for_last(CHAINED)
    if expert < 0:
        return
    rows_at = hidden + _rows(pair, num_pairs) * inner
    total = multiply_held(words, scale, rows_at, 0, NUM_STEPS, BLOCK_N, WORDS, PLANES, BLOCK_S, HAS_ASM)
    total = multiply_rest_held(
        total, codes, scales, limit, 0, rows_at, NUM_STEPS, row_words, width, GROUP_STEPS, BLOCK_N, False, WORDS,
        PLANES, BLOCK_S, HAS_ASM,
    )  # fmt: skip
    column = tl.arange(0, BLOCK_N)[:, None]
    at = results + pair.to(tl.int64)[None, :] * width + tile * BLOCK_N + column
    tl.store(at, to_dtype(total, results.dtype.element_ty), mask=(pair < num_pairs)[None, :] & (column < limit))


@triton.jit
def _rows(pair, num_pairs):
    """Which rows to multiply [8]: what fills a block up repeats its first pair, so that nothing more is read."""
    return tl.where(pair < num_pairs, pair, tl.min(pair, 0))
