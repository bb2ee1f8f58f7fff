"""One token at its experts: gate-up with SwiGLU, then down.

Such a step is as long as reading the weights takes, if memory never waits. So nothing goes through shared memory or in
turns: a program asks for all that it needs of its expert at once, into registers. Shared experts, which need no
choice, and what `down` needs are asked for before the kernel ahead has ended. The choice itself may be left to gate-up:
each of its programs finds its expert, and one more writes down what all of them do.

Weights are numbers of 16 bits or codes of 8 (ops/quantized_weight), whose shared experts lie behind the routed ones.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last, wait_then_release
from vl2.ops.experts.kernel_common import swish
from vl2.ops.experts.mixture import Mixture
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.gate.kernel_common import Undecided, decide_single, find, parts_of_choice
from vl2.ops.quantized_experts.weights import QuantizedExperts
from vl2.ops.saturate_kernel import to_dtype
from vl2.ops.single_row.kernel_common import Tile, form_of, load_part, multiply_part, multiply_rest, parts_of

TILES = {16: (Tile(4, 2048, 8), Tile(4, 2048, 4)), 8: (Tile(4, 2048, 2), Tile(8, 512, 2))}
"""By a weight's bits: for gate-up, for down."""


def mix_single(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    experts: ExpertWeights | QuantizedExperts,
    num_shared: int,
    undecided: Undecided | None = None,
) -> Mixture:
    """`Backend.mix_experts` (ops/backend.py) of one row of 16 bits; of a routed one's width there are `num_shared`.
    Ids and weights that are undecided are filled in. Both weights have codes of 8 bits or none."""
    (gate_up, up_scales), (down, down_scales) = parts_of(experts.gate_up), parts_of(experts.down)
    (num_experts, width, inner), num_chosen = down.shape, ids.shape[1]
    num_active, num_routed = num_chosen + num_shared, num_experts - num_shared
    shared_up, shared_down, is_apart = gate_up, down, False
    if isinstance(experts, ExpertWeights) and experts.shared_gate_up is not None:
        shared_up, shared_down, is_apart = experts.shared_gate_up, experts.shared_down, True
        num_routed = num_experts
    up_tile, down_tile = TILES[8 * gate_up.element_size()]
    common = dict(NUM_CHOSEN=num_chosen, NUM_SHARED=num_shared, IS_APART=is_apart, **chained(x.device))
    by, forms = parts_of_choice(undecided, weights)
    hidden = torch.empty(num_active, inner, dtype=x.dtype, device=x.device)
    _gate_up[((undecided is not None) + num_active * triton.cdiv(inner, up_tile.block_n),)](
        x, ids, weights, *by, gate_up, up_scales, shared_up, hidden, num_routed, up_scales.stride(0), width, inner,
        **forms, **form_of(experts.gate_up, up_tile, width), NUM_WARPS=up_tile.num_warps, num_warps=up_tile.num_warps,
        **common,
    )  # fmt: skip
    results = torch.empty(num_active, width, dtype=x.dtype, device=x.device)
    _down[(num_active * triton.cdiv(width, down_tile.block_n),)](
        hidden, ids, down, down_scales, shared_down, results, num_routed, down_scales.stride(0), width, inner,
        **form_of(experts.down, down_tile, inner), num_warps=down_tile.num_warps, **common,
    )  # fmt: skip
    return Mixture(results, weights)


@triton.jit
def _place_of(number, num_outputs, NUM_CHOSEN: tl.constexpr, NUM_SHARED: tl.constexpr, BLOCK_N: tl.constexpr):
    """(which expert of the token's, shared ones first; where it comes in the mixture, shared ones last; outputs [N])"""
    num_tiles = tl.cdiv(num_outputs, BLOCK_N)
    place, tile = number // num_tiles, number % num_tiles
    pair = tl.where(place < NUM_SHARED, place + NUM_CHOSEN, place - NUM_SHARED)
    return place, pair, tile * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def _gate_up(
    x, ids, weights, logits, bias, num_experts, scaling, gate_up, scales, shared, hidden, num_routed, expert_scales,
    width, inner, HAS_BIAS: tl.constexpr, IS_SOFTMAX: tl.constexpr, NORMS: tl.constexpr, BLOCK_E: tl.constexpr,
    NUM_WARPS: tl.constexpr, NUM_CHOSEN: tl.constexpr, NUM_SHARED: tl.constexpr, IS_APART: tl.constexpr,
    STEP: tl.constexpr, BITS: tl.constexpr, GROUP_STEPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
    HAS_ASM: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Shared experts first: they wait for no choice. `_down` reads the choice before it waits, so it is let start only
    when this kernel has it. Without a BLOCK_E it has been made."""
    number = tl.program_id(0)
    if BLOCK_E > 0:
        if number == 0:
            decide_single(
                logits, bias, num_experts, ids, weights, scaling, NUM_CHOSEN, HAS_BIAS, IS_SOFTMAX, NORMS, BLOCK_E,
                CHAINED,
            )  # fmt: skip
            return
        number -= 1
    place, pair, column = _place_of(number, inner, NUM_CHOSEN, NUM_SHARED, BLOCK_N)
    expert = (num_routed + place).to(tl.int64)
    if place >= NUM_SHARED:
        if BLOCK_E > 0:
            chosen = find(logits, bias, num_experts, pair, HAS_BIAS, IS_SOFTMAX, BLOCK_E, NUM_WARPS, CHAINED)
            expert = chosen.to(tl.int64)
        else:
            wait_then_release(CHAINED)
            expert = tl.load(ids + pair).to(tl.int64)
    gates, up_rows, all_rows = gate_up + expert * (2 * inner) * width, inner, 2 * inner
    if IS_APART and place < NUM_SHARED:
        gates, up_rows = shared + place.to(tl.int64) * inner * width, inner * NUM_SHARED
    ups, gate_scales = gates + up_rows.to(tl.int64) * width, scales + expert * expert_scales
    up_scales, is_column = gate_scales + inner, column < inner
    gate_words, gate_scale = load_part(
        gates, gate_scales, column, is_column, 0, width, width, all_rows, STEP, BITS, GROUP_STEPS, BLOCK_S
    )
    up_words, up_scale = load_part(
        ups, up_scales, column, is_column, 0, width, width, all_rows, STEP, BITS, GROUP_STEPS, BLOCK_S
    )
    wait_then_release(CHAINED)
    gate = multiply_part(gate_words, gate_scale, x, 0, width, STEP, BITS, BLOCK_S, HAS_ASM)
    up = multiply_part(up_words, up_scale, x, 0, width, STEP, BITS, BLOCK_S, HAS_ASM)
    gate += multiply_rest(
        gates, gate_scales, column, is_column, x, width, width, all_rows, STEP, BITS, GROUP_STEPS, BLOCK_S, HAS_ASM
    )
    up += multiply_rest(
        ups, up_scales, column, is_column, x, width, width, all_rows, STEP, BITS, GROUP_STEPS, BLOCK_S, HAS_ASM
    )
    tl.store(hidden + pair * inner + column, swish(gate, up, hidden.dtype.element_ty), mask=is_column)


@triton.jit
def _down(
    hidden, ids, down, scales, shared, results, num_routed, expert_scales, width, inner,
    NUM_CHOSEN: tl.constexpr, NUM_SHARED: tl.constexpr, IS_APART: tl.constexpr, STEP: tl.constexpr,
    BITS: tl.constexpr, GROUP_STEPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr, HAS_ASM: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Reads the choice before it waits, which only a kernel right behind `_gate_up` may."""
    place, pair, column = _place_of(tl.program_id(0), width, NUM_CHOSEN, NUM_SHARED, BLOCK_N)
    expert = (num_routed + place).to(tl.int64)
    if place >= NUM_SHARED:
        expert = tl.load(ids + pair, cache_modifier=".cg").to(tl.int64)
    own, row_size = down + expert * width * inner, inner
    if IS_APART and place < NUM_SHARED:
        own, row_size = shared + place.to(tl.int64) * inner, inner * NUM_SHARED
    is_column, own_scales = column < width, scales + expert * expert_scales
    words, scale = load_part(
        own, own_scales, column, is_column, 0, inner, row_size, width, STEP, BITS, GROUP_STEPS, BLOCK_S
    )
    wait_for_last(CHAINED)
    row = hidden + pair * inner
    total = multiply_part(words, scale, row, 0, inner, STEP, BITS, BLOCK_S, HAS_ASM)
    total += multiply_rest(
        own, own_scales, column, is_column, row, inner, row_size, width, STEP, BITS, GROUP_STEPS, BLOCK_S, HAS_ASM
    )
    tl.store(results + pair * width + column, to_dtype(total, results.dtype.element_ty), mask=is_column)
