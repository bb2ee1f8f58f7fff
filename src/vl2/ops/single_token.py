"""A single token from the norm before its router to its experts' results, in one launch less than op by op.

Its experts are not chosen by a kernel between the router and them: gate-up's programs do that, each for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from vl2.core.model_config import MoEConfig
from vl2.ops.experts.kernel import count_shared, mix_experts
from vl2.ops.experts.kernel_one import mix_single
from vl2.ops.experts.mixture import Mixture
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.gate.kernel import empty_choice, norm_and_logits, norm_and_route
from vl2.ops.gate.kernel_common import Undecided, can_be_left_undecided
from vl2.ops.quantized_experts.kernel import are_held, are_single, mix_quantized_experts
from vl2.ops.quantized_experts.kernel_held import mix_held
from vl2.ops.quantized_experts.weights import QuantizedExperts


def norm_and_mix(
    x: torch.Tensor,
    delta: torch.Tensor | Mixture,
    norm_weight: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    config: MoEConfig,
    experts: ExpertWeights | QuantizedExperts,
) -> tuple[torch.Tensor, torch.Tensor, Mixture]:
    """`Backend.norm_and_mix` (ops/backend.py). What kernels of a single 16-bit row do not multiply goes op by op."""
    assert len(x) == 1
    mix = _kernel_of(experts, norm_weight.dtype)
    if mix is None or not can_be_left_undecided(bias, config):
        x, normed, ids, weights = norm_and_route(x, delta, norm_weight, eps, weight, bias, config)
        if isinstance(experts, QuantizedExperts):
            return x, normed, mix_quantized_experts(normed, ids, weights, experts)
        return x, normed, mix_experts(normed, ids, weights, experts)
    x, normed, logits = norm_and_logits(x, delta, norm_weight, eps, weight)
    ids, weights = empty_choice(1, config, x.device)
    return x, normed, mix(normed, ids, weights, undecided=Undecided(logits, bias, config))


def _kernel_of(experts: ExpertWeights | QuantizedExperts, dtype: torch.dtype) -> Callable[..., Mixture] | None:
    """What multiplies a single row with such weights and can choose by itself; None: there is nothing."""
    if isinstance(experts, QuantizedExperts):
        if are_held(1, dtype, experts):
            return partial(mix_held, experts=experts)
        num_shared, is_single = experts.num_shared, are_single(1, dtype, experts)
    else:
        num_shared, is_single = count_shared(experts), dtype != torch.float32
    return partial(mix_single, experts=experts, num_shared=num_shared) if is_single else None
