"""How experts are chosen by their logits: all of a token's at once, or one of them by a program that needs no other.

A program with an expert's weights to read can find out which one it is in less time than another kernel takes to tell
it. Programs that look for the same expert must find the same one, in whatever layout they look: so experts are compared
by numbers whose bits depend on no sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vl2.core.model_config import MoEConfig
from vl2.ops.chain import flush, wait_without_release

_LOWEST = tl.constexpr(-3.4028234663852886e38)
_TAKEN = tl.constexpr(-(2**31))


@dataclass(frozen=True, slots=True)
class Undecided:
    """What the choice of a single token is made by, which the first kernel of its experts makes in passing."""

    logits: torch.Tensor  # [1, E] float32
    bias: torch.Tensor | None  # [E] float32
    config: MoEConfig


def can_be_left_undecided(bias: torch.Tensor | None, config: MoEConfig) -> bool:
    """Not a choice by groups, nor by a softmax, which is a sum, and a bias; no released model has these."""
    has_groups = config.num_groups > 1 and config.topk_method != "greedy"
    return not has_groups and not (config.scoring_func == "softmax" and bias is not None)


def forms_of(bias: torch.Tensor | None, config: MoEConfig) -> dict[str, int | bool]:
    """The constants of a kernel that chooses."""
    return dict(
        HAS_BIAS=bias is not None, IS_SOFTMAX=config.scoring_func == "softmax",
        NORMS=config.norm_topk_prob and config.num_active > 1, BLOCK_E=triton.next_power_of_2(config.num_experts),
    )  # fmt: skip


def parts_of_choice(
    undecided: Undecided | None, nothing: torch.Tensor
) -> tuple[tuple[torch.Tensor, torch.Tensor, int, float], dict[str, int | bool]]:
    """(logits, bias, their number, scaling) and the constants of a kernel that chooses in passing, or is told (0)."""
    if undecided is None:
        return (nothing, nothing, 0, 1.0), dict(HAS_BIAS=False, IS_SOFTMAX=False, NORMS=False, BLOCK_E=0)
    logits, bias, config = undecided.logits, undecided.bias, undecided.config
    numbers = logits.shape[1], config.routed_scaling_factor
    return (logits, logits if bias is None else bias, *numbers), forms_of(bias, config)


@triton.jit
def load_bias(bias, experts, num_experts, HAS_BIAS: tl.constexpr):
    """Zero without one. It can be asked for before the logits are there."""
    if HAS_BIAS:
        return tl.load(bias + experts, mask=experts < num_experts, other=0.0)
    return tl.zeros(experts.shape, tl.float32)


@triton.jit
def decide(
    logits, bias, experts, num_experts, ids, weights, scaling, NUM_ACTIVE: tl.constexpr, HAS_BIAS: tl.constexpr,
    IS_SOFTMAX: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    """Write down a token's ids and weights: the best expert, NUM_ACTIVE times. argmax takes the lower id of equals."""
    if IS_SOFTMAX:
        scores = tl.exp(logits - tl.max(logits, 0))
        scores = scores / tl.sum(scores, 0)
    else:
        scores = _sigmoid(logits)
    choice = _comparable(logits, scores, bias, experts < num_experts, HAS_BIAS, IS_SOFTMAX)
    total, left = 1e-20, choice
    for _ in tl.static_range(NUM_ACTIVE if NORMS else 0):
        best = tl.argmax(left, 0, tie_break_left=True)
        total += tl.sum(tl.where(experts == best, scores, 0.0), 0)
        left = tl.where(experts == best, float("-inf"), left)
    if NORMS:
        scores = scores / total
    for rank in tl.static_range(NUM_ACTIVE):
        best = tl.argmax(choice, 0, tie_break_left=True)
        tl.store(ids + rank, best)
        tl.store(weights + rank, tl.sum(tl.where(experts == best, scores, 0.0), 0) * scaling)
        choice = tl.where(experts == best, float("-inf"), choice)


@triton.jit
def decide_single(
    logits, bias, num_experts, ids, weights, scaling, NUM_ACTIVE: tl.constexpr, HAS_BIAS: tl.constexpr,
    IS_SOFTMAX: tl.constexpr, NORMS: tl.constexpr, BLOCK_E: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """`decide` for a single token, by a program that does nothing else beside others that `find` their experts. The
    next kernel may read the ids before it waits, if it is let start no sooner than this program ends."""
    experts = tl.arange(0, BLOCK_E)
    steer = load_bias(bias, experts, num_experts, HAS_BIAS)
    wait_without_release(CHAINED)
    row = tl.load(logits + experts, mask=experts < num_experts, other=float("-inf"))
    decide(row, steer, experts, num_experts, ids, weights, scaling, NUM_ACTIVE, HAS_BIAS, IS_SOFTMAX, NORMS)
    flush(CHAINED)


@triton.jit
def find(
    logits, bias, num_experts, rank, HAS_BIAS: tl.constexpr, IS_SOFTMAX: tl.constexpr, BLOCK_E: tl.constexpr,
    NUM_WARPS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Wait; the expert that `decide_single` writes down at `rank`.

    Each warp looks by itself, in a row of its own, as to tell the others takes longer; among whole numbers in the order
    of the scores, as the best of 32 of them is one instruction.
    """
    tl.static_assert(not (HAS_BIAS and IS_SOFTMAX))
    experts = tl.zeros((NUM_WARPS, 1), tl.int32) + tl.arange(0, BLOCK_E)[None, :]
    steer = load_bias(bias, experts, num_experts, HAS_BIAS)
    wait_without_release(CHAINED)
    row = tl.load(logits + experts, mask=experts < num_experts, other=float("-inf"))
    choice = _comparable(row, _sigmoid(row), steer, experts < num_experts, HAS_BIAS, IS_SOFTMAX)
    bits = (choice + 0.0).to(tl.int32, bitcast=True)  # -0.0 becomes 0.0
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    for _ in range(rank):
        order = tl.where(experts == _best(order, experts, BLOCK_E), _TAKEN, order)
    return tl.max(tl.max(_best(order, experts, BLOCK_E), 1), 0)


@triton.jit
def _best(order, experts, BLOCK_E: tl.constexpr):
    """[rows, 1]: the lowest expert of those that come first."""
    is_first = order == tl.max(order, 1, keep_dims=True)
    return tl.min(tl.where(is_first, experts, BLOCK_E), 1, keep_dims=True)


@triton.jit
def _comparable(logits, scores, bias, known, HAS_BIAS: tl.constexpr, IS_SOFTMAX: tl.constexpr):
    """What experts are chosen by. A softmax leaves logits in their order. What is no number comes last."""
    if HAS_BIAS:
        choice = scores + bias
    elif IS_SOFTMAX:
        choice = logits
    else:
        choice = scores
    choice = tl.where(choice > _LOWEST, choice, _LOWEST)
    return tl.where(known, choice, float("-inf"))


@triton.jit
def _sigmoid(logits):
    return 1.0 / (1.0 + tl.exp(-logits))
