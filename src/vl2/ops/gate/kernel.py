"""The router in two launches: scores, then the choice."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vl2.core.model_config import MoEConfig
from vl2.ops.gate import reference

FEW_TOKENS = 16
"""Up to here a program reads a few experts' weights for one token; beyond, cuBLAS multiplies (in float32, not tf32)."""


def route(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, config: MoEConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.route` (ops/backend.py). Groups, which no released model has, go the reference's way."""
    if config.num_groups > 1 and config.topk_method != "greedy":
        ids, weights = reference.route(x, weight, bias, config)
        return ids.contiguous(), weights.contiguous()
    num_tokens, width = x.shape
    num_experts, num_active = config.num_experts, config.num_active
    if num_tokens <= FEW_TOKENS:
        logits = torch.empty(num_tokens, num_experts, dtype=torch.float32, device=x.device)
        block_experts = 4
        _router_logits[(num_tokens, triton.cdiv(num_experts, block_experts))](
            x, weight, logits, width, num_experts, x.stride(0), BLOCK_E=block_experts, BLOCK_C=1024, num_warps=4
        )
    else:
        logits = x.float() @ weight.T
    ids = torch.empty(num_tokens, num_active, dtype=torch.int32, device=x.device)
    weights = torch.empty(num_tokens, num_active, dtype=torch.float32, device=x.device)
    _choose[(num_tokens,)](
        logits, bias if bias is not None else logits, ids, weights, num_experts, config.routed_scaling_factor,
        NUM_ACTIVE=num_active, HAS_BIAS=bias is not None, IS_SOFTMAX=config.scoring_func == "softmax",
        NORMS=config.norm_topk_prob and num_active > 1, BLOCK_E=triton.next_power_of_2(num_experts), num_warps=1,
    )  # fmt: skip
    return ids, weights


@triton.jit
def _router_logits(
    x, weight, logits, width, num_experts, row_stride, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0)
    experts = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    known = experts < num_experts
    total = tl.zeros((BLOCK_E, BLOCK_C), tl.float32)
    for start in range(0, width, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        row = tl.load(x + token.to(tl.int64) * row_stride + columns, mask=columns < width, other=0.0).to(tl.float32)
        at = experts[:, None] * width + columns[None, :]
        total += tl.load(weight + at, mask=known[:, None] & (columns < width)[None, :], other=0.0) * row[None, :]
    tl.store(logits + token * num_experts + experts, tl.sum(total, 1), mask=known)


@triton.jit
def _choose(
    logits, bias, ids, weights, num_experts, scaling,
    NUM_ACTIVE: tl.constexpr, HAS_BIAS: tl.constexpr, IS_SOFTMAX: tl.constexpr, NORMS: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One token a program: the best expert, NUM_ACTIVE times. argmax takes the lower id of equals."""
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
