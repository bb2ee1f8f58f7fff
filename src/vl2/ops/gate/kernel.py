"""The router in two launches: logits, of few tokens with the norm before them, then the choice.

A single token's choice may be left to the first kernel of its experts (ops/single_token.py).
"""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
import triton
import triton.language as tl
from torch.utils.weak import WeakTensorKeyDictionary

from vl2.core.model_config import MoEConfig
from vl2.ops.chain import chained, wait_for_last
from vl2.ops.exact_linear.kernel import linear as exact_linear
from vl2.ops.experts.mixture import Mixture
from vl2.ops.gate import reference
from vl2.ops.gate.kernel_common import decide, forms_of, load_bias
from vl2.ops.norm.kernel import add_delta, add_rms_norm, kinds_of, norm, parts_of_delta

FEW_TOKENS, SOME_TOKENS = 16, 256
"""Up to here a program multiplies one token with one expert, or a few with a few; beyond, tensor cores do."""
_PARTS: MutableMapping[torch.Tensor, torch.Tensor] = WeakTensorKeyDictionary()


def route(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, config: MoEConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.route` (ops/backend.py). Groups, which no released model has, go the reference's way."""
    if config.num_groups > 1 and config.topk_method != "greedy":
        ids, weights = reference.route(x, weight, bias, config)
        return ids.contiguous(), weights.contiguous()
    return choose(router_logits(x, weight), bias, config)


def norm_and_route(
    x: torch.Tensor,
    delta: torch.Tensor | Mixture,
    norm_weight: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    config: MoEConfig,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`Backend.norm_and_route` (ops/backend.py)."""
    if not 0 < len(x) <= FEW_TOKENS or (config.num_groups > 1 and config.topk_method != "greedy"):
        total, normed = add_rms_norm(x, delta, norm_weight, eps)
        return total, normed, *route(normed, weight, bias, config)
    total, normed, logits = norm_and_logits(x, delta, norm_weight, eps, weight)
    return total, normed, *choose(logits, bias, config)


def norm_and_logits(
    x: torch.Tensor, delta: torch.Tensor | Mixture, norm_weight: torch.Tensor, eps: float, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x + delta, its norm, and the router's logits [T, E] float32, of up to FEW_TOKENS rows."""
    assert x.is_contiguous() and (not isinstance(delta, torch.Tensor) or delta.is_contiguous())
    (num_tokens, width), num_experts = x.shape, len(weight)
    total, normed = torch.empty_like(x), torch.empty(x.shape, dtype=norm_weight.dtype, device=x.device)
    logits = torch.empty(num_tokens, num_experts, dtype=torch.float32, device=x.device)
    _norm_and_logits[num_tokens, num_experts](
        x, *parts_of_delta(delta, x), norm_weight, weight, total, normed, logits, eps, num_experts, WIDTH=width,
        **kinds_of(delta), BLOCK=triton.next_power_of_2(width), num_warps=4, **chained(x.device),
    )  # fmt: skip
    return total, normed, logits


def exact_route(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, config: MoEConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """`route` whose rows have the same bits however many there are: one way for all of them."""
    if config.num_groups > 1 and config.topk_method != "greedy":
        ids, weights = reference.choose(_multiply_few(x, weight, 4, 512), bias, config)
        return ids.contiguous(), weights.contiguous()
    if x.dtype == torch.bfloat16:
        return choose(exact_linear(x, parts_of(weight), out_dtype=torch.float32), bias, config)
    return choose(_multiply_few(x, weight, 4, 512), bias, config)


def choose(logits: torch.Tensor, bias: torch.Tensor | None, config: MoEConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [T, E] float32, or [T, 3 · E]: in parts to be added → ids and weights as of `Backend.route`."""
    num_tokens, num_experts = len(logits), config.num_experts
    ids, weights = empty_choice(num_tokens, config, logits.device)
    _choose[(num_tokens,)](
        logits, bias if bias is not None else logits, ids, weights, num_experts, config.routed_scaling_factor,
        NUM_ACTIVE=config.num_active, HAS_PARTS=logits.shape[1] > num_experts, **forms_of(bias, config), num_warps=1,
        **chained(logits.device),
    )  # fmt: skip
    return ids, weights


def empty_choice(num_tokens: int, config: MoEConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and weights as of `Backend.route`, not filled in."""
    shape = num_tokens, config.num_active
    return torch.empty(shape, dtype=torch.int32, device=device), torch.empty(shape, device=device)


def router_logits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [T, C], weight [E, C] float32 → x @ weightᵀ float32: [T, E], or [T, 3 · E], whose parts are to be added."""
    num_tokens = len(x)
    if num_tokens <= SOME_TOKENS:
        block = 1 if num_tokens <= FEW_TOKENS else 4
        return _multiply_few(x, weight, block, 2048 // block)
    if x.dtype != torch.bfloat16:
        return x.float() @ weight.T  # not tf32
    parts = parts_of(weight)
    if x.device.type == "cuda":
        return torch.mm(x, parts.T, out_dtype=torch.float32)
    return x.float() @ parts.float().T


def parts_of(weight: torch.Tensor) -> torch.Tensor:
    """[E, C] float32 → [3 · E, C] bfloat16, whose sum it is: so tensor cores multiply it with nothing rounded.

    The product of two bfloat16 numbers is exact in the float32 in which products are added up. Made once for a weight.
    """
    if (parts := _PARTS.get(weight)) is None:
        first = weight.bfloat16()
        second = (weight - first).bfloat16()
        third = (weight - first - second).bfloat16()
        parts = _PARTS[weight] = torch.cat((first, second, third))
    return parts


def _multiply_few(x: torch.Tensor, weight: torch.Tensor, block: int, block_c: int) -> torch.Tensor:
    """[T, E]; a program has `block` tokens and experts."""
    (num_tokens, width), num_experts = x.shape, len(weight)
    logits = torch.empty(num_tokens, num_experts, dtype=torch.float32, device=x.device)
    _few_logits[triton.cdiv(num_tokens, block), triton.cdiv(num_experts, block)](
        x, weight, logits, num_tokens, width, num_experts, x.stride(0),
        BLOCK_T=block, BLOCK_E=block, BLOCK_C=block_c, num_warps=4, **chained(x.device),
    )  # fmt: skip
    return logits


@triton.jit(do_not_specialize=["eps"])
def _norm_and_logits(
    x, delta, results, shares, norm_weight, weight, total, normed, logits, eps, num_experts, WIDTH: tl.constexpr,
    HAS_DELTA: tl.constexpr, NUM_ROUTED: tl.constexpr, NUM_ACTIVE: tl.constexpr, BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """A token at an expert. All experts' programs norm the token, which takes less time than to wait for one that does;
    the first expert's writes it down."""
    token, expert, columns = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BLOCK)
    inside = columns < WIDTH
    own = tl.load(weight + expert * WIDTH + columns, mask=inside, other=0.0)
    scale = tl.load(norm_weight + columns, mask=inside, other=0.0).to(tl.float32)
    wait_for_last(CHAINED)  # only the weights are there before
    at = token * WIDTH + columns
    value = tl.load(x + at, mask=inside, other=0.0)
    value = add_delta(value, delta, results, shares, token, columns, inside, WIDTH, HAS_DELTA, NUM_ROUTED, NUM_ACTIVE)
    row = norm(value, scale, WIDTH, eps, normed.dtype.element_ty)
    if expert == 0:
        tl.store(total + at, value, mask=inside)
        tl.store(normed + at, row, mask=inside)
    tl.store(logits + token * num_experts + expert, tl.sum(row.to(tl.float32) * own, 0))


@triton.jit(do_not_specialize=["num_tokens"])
def _few_logits(
    x, weight, logits, num_tokens, width, num_experts, row_stride,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """BLOCK_T tokens at BLOCK_E experts, without a matrix product."""
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    experts = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    is_token, is_expert = (tokens < num_tokens)[:, None], (experts < num_experts)[:, None]
    rows, weights = x + tokens.to(tl.int64)[:, None] * row_stride, weight + experts[:, None] * width
    columns = tl.arange(0, BLOCK_C)[None, :]
    first = tl.load(weights + columns, mask=is_expert & (columns < width), other=0.0)
    wait_for_last(CHAINED)  # only the weights are there before
    row = tl.load(rows + columns, mask=is_token & (columns < width), other=0.0).to(tl.float32)
    total = row[:, None, :] * first[None]
    for start in range(BLOCK_C, width, BLOCK_C):
        columns = (start + tl.arange(0, BLOCK_C))[None, :]
        row = tl.load(rows + columns, mask=is_token & (columns < width), other=0.0).to(tl.float32)
        total += row[:, None, :] * tl.load(weights + columns, mask=is_expert & (columns < width), other=0.0)[None]
    at = tokens.to(tl.int64)[:, None] * num_experts + experts[None, :]
    tl.store(logits + at, tl.sum(total, 2), mask=is_token & (experts < num_experts)[None, :])


@triton.jit
def _choose(
    logits, bias, ids, weights, num_experts, scaling,
    NUM_ACTIVE: tl.constexpr, HAS_PARTS: tl.constexpr, HAS_BIAS: tl.constexpr, IS_SOFTMAX: tl.constexpr,
    NORMS: tl.constexpr, BLOCK_E: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One token a program."""
    token, experts = tl.program_id(0), tl.arange(0, BLOCK_E)
    known, steer = experts < num_experts, load_bias(bias, experts, num_experts, HAS_BIAS)
    wait_for_last(CHAINED)  # only the bias is there before
    logits += token.to(tl.int64) * num_experts * (3 if HAS_PARTS else 1) + experts
    total = tl.load(logits, mask=known, other=float("-inf"))
    if HAS_PARTS:  # the small ones are added up first
        second = tl.load(logits + num_experts, mask=known, other=0.0)
        total += second + tl.load(logits + 2 * num_experts, mask=known, other=0.0)
    ids, weights = ids + token * NUM_ACTIVE, weights + token * NUM_ACTIVE
    decide(total, steer, experts, num_experts, ids, weights, scaling, NUM_ACTIVE, HAS_BIAS, IS_SOFTMAX, NORMS)
