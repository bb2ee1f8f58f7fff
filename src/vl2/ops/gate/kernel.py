"""The router in two launches: logits, then the choice."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vl2.core.model_config import MoEConfig
from vl2.ops.chain import chained, wait_for_last
from vl2.ops.gate import reference

FEW_TOKENS, SOME_TOKENS = 16, 256
"""Up to here a program multiplies one token with one expert, or a few with a few; beyond, tensor cores do."""


def route(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, config: MoEConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.route` (ops/backend.py). Groups, which no released model has, go the reference's way."""
    if config.num_groups > 1 and config.topk_method != "greedy":
        ids, weights = reference.route(x, weight, bias, config)
        return ids.contiguous(), weights.contiguous()
    return choose(router_logits(x, weight), bias, config)


def choose(logits: torch.Tensor, bias: torch.Tensor | None, config: MoEConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [T, E] float32 → ids and weights as of `Backend.route`."""
    num_tokens, num_experts, num_active = len(logits), config.num_experts, config.num_active
    ids = torch.empty(num_tokens, num_active, dtype=torch.int32, device=logits.device)
    weights = torch.empty(num_tokens, num_active, dtype=torch.float32, device=logits.device)
    _choose[(num_tokens,)](
        logits, bias if bias is not None else logits, ids, weights, num_experts, config.routed_scaling_factor,
        NUM_ACTIVE=num_active, HAS_BIAS=bias is not None, IS_SOFTMAX=config.scoring_func == "softmax",
        NORMS=config.norm_topk_prob and num_active > 1, BLOCK_E=triton.next_power_of_2(num_experts), num_warps=1,
        **chained(logits.device),
    )  # fmt: skip
    return ids, weights


def exact_route(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, config: MoEConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """`route` whose rows have the same bits however many there are: one kernel with one tile for all of them."""
    assert config.num_groups == 1 or config.topk_method == "greedy"
    (num_tokens, width), num_experts = x.shape, len(weight)
    logits = torch.empty(num_tokens, num_experts, dtype=torch.float32, device=x.device)
    arguments = x, weight, logits, num_tokens, width, num_experts, x.stride(0)
    if x.dtype == torch.bfloat16:
        _many_logits[triton.cdiv(num_tokens, 32), triton.cdiv(num_experts, 16)](
            *arguments, BLOCK_T=32, BLOCK_E=16, BLOCK_C=128, num_warps=4, num_stages=4
        )
    else:
        _few_logits[triton.cdiv(num_tokens, 4), triton.cdiv(num_experts, 4)](
            *arguments, BLOCK_T=4, BLOCK_E=4, BLOCK_C=512, num_warps=4, **chained(x.device)
        )
    return choose(logits, bias, config)


def router_logits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [T, C], weight [E, C] float32 → x @ weightᵀ [T, E] float32.

    Many rows of bfloat16 go to the tensor cores with nothing rounded: a float32 weight is the sum of three bfloat16
    numbers, and their products with a bfloat16 number are exact in the float32 in which they are added up. Other types
    are then multiplied by cuBLAS in float32 (not tf32).
    """
    (num_tokens, width), num_experts = x.shape, len(weight)
    if num_tokens > SOME_TOKENS and x.dtype != torch.bfloat16:
        return x.float() @ weight.T
    logits = torch.empty(num_tokens, num_experts, dtype=torch.float32, device=x.device)
    arguments = x, weight, logits, num_tokens, width, num_experts, x.stride(0)
    if num_tokens <= SOME_TOKENS:
        block = 1 if num_tokens <= FEW_TOKENS else 4
        _few_logits[triton.cdiv(num_tokens, block), triton.cdiv(num_experts, block)](
            *arguments, BLOCK_T=block, BLOCK_E=block, BLOCK_C=2048 // block, num_warps=4, **chained(x.device)
        )
    else:
        block_t = 32 if num_tokens <= 2048 else 64
        _many_logits[triton.cdiv(num_tokens, block_t), triton.cdiv(num_experts, 32)](
            *arguments, BLOCK_T=block_t, BLOCK_E=32, BLOCK_C=128, num_warps=4, num_stages=4
        )
    return logits


@triton.jit(do_not_specialize=["num_tokens"])
def _few_logits(
    x, weight, logits, num_tokens, width, num_experts, row_stride,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """BLOCK_T tokens at BLOCK_E experts, without a matrix product."""
    wait_for_last(CHAINED)
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    experts = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    is_token, is_expert = (tokens < num_tokens)[:, None], (experts < num_experts)[:, None]
    rows, weights = x + tokens.to(tl.int64)[:, None] * row_stride, weight + experts[:, None] * width
    total = tl.zeros((BLOCK_T, BLOCK_E, BLOCK_C), tl.float32)
    for start in range(0, width, BLOCK_C):
        columns = (start + tl.arange(0, BLOCK_C))[None, :]
        row = tl.load(rows + columns, mask=is_token & (columns < width), other=0.0).to(tl.float32)
        total += row[:, None, :] * tl.load(weights + columns, mask=is_expert & (columns < width), other=0.0)[None]
    at = tokens.to(tl.int64)[:, None] * num_experts + experts[None, :]
    tl.store(logits + at, tl.sum(total, 2), mask=is_token & (experts < num_experts)[None, :])


@triton.jit(do_not_specialize=["num_tokens"])
def _many_logits(
    x, weight, logits, num_tokens, width, num_experts, row_stride,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_T tokens at BLOCK_E experts; the small parts are added up apart from the large one."""
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    experts = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    rows = x + tokens.to(tl.int64)[:, None] * row_stride
    is_row, is_expert = (tokens < num_tokens)[:, None], (experts < num_experts)[None, :]
    high, low = tl.zeros((BLOCK_T, BLOCK_E), tl.float32), tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    for start in range(0, width, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        row = tl.load(rows + columns[None, :], mask=is_row & (columns < width)[None, :], other=0.0)
        at = experts[None, :] * width + columns[:, None]
        w = tl.load(weight + at, mask=is_expert & (columns < width)[:, None], other=0.0)
        first = w.to(tl.bfloat16)
        rest = w - first.to(tl.float32)
        second = rest.to(tl.bfloat16)
        third = (rest - second.to(tl.float32)).to(tl.bfloat16)
        low = tl.dot(row, third, low)
        low = tl.dot(row, second, low)
        high = tl.dot(row, first, high)
    at = tokens.to(tl.int64)[:, None] * num_experts + experts[None, :]
    tl.store(logits + at, high + low, mask=is_row & is_expert)


@triton.jit
def _choose(
    logits, bias, ids, weights, num_experts, scaling,
    NUM_ACTIVE: tl.constexpr, HAS_BIAS: tl.constexpr, IS_SOFTMAX: tl.constexpr, NORMS: tl.constexpr,
    BLOCK_E: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One token a program: the best expert, NUM_ACTIVE times. argmax takes the lower id of equals."""
    wait_for_last(CHAINED)
    token = tl.program_id(0)
    experts = tl.arange(0, BLOCK_E)
    known = experts < num_experts
    scores = tl.load(logits + token.to(tl.int64) * num_experts + experts, mask=known, other=float("-inf"))
    if IS_SOFTMAX:
        scores = tl.exp(scores - tl.max(scores, 0))
        scores = scores / tl.sum(scores, 0)
    else:
        scores = 1.0 / (1.0 + tl.exp(-scores))
    choice = scores
    if HAS_BIAS:
        choice += tl.load(bias + experts, mask=known, other=0.0)
    choice = tl.where(known, choice, float("-inf"))
    total = 1e-20
    for _ in tl.static_range(NUM_ACTIVE if NORMS else 0):
        best = tl.argmax(choice, 0, tie_break_left=True)
        total += tl.sum(tl.where(experts == best, scores, 0.0), 0)
        choice = tl.where(experts == best, float("-inf"), choice)
    if NORMS:
        choice = scores
        if HAS_BIAS:
            choice += tl.load(bias + experts, mask=known, other=0.0)
        choice = tl.where(known, choice, float("-inf"))
        scores = scores / total
    for rank in tl.static_range(NUM_ACTIVE):
        best = tl.argmax(choice, 0, tie_break_left=True)
        weight = tl.sum(tl.where(experts == best, scores, 0.0), 0) * scaling
        tl.store(ids + token * NUM_ACTIVE + rank, best)
        tl.store(weights + token * NUM_ACTIVE + rank, weight)
        choice = tl.where(experts == best, float("-inf"), choice)
