"""The router by the native library: each row by itself, without a tensor of scores for every step of the choice."""

from __future__ import annotations

import functools

import torch

from vl2.core.model_config import SCORING_FUNCS, TOPK_METHODS, MoEConfig
from vl2.ops.gate import reference
from vl2.ops.native.prompts import row_workers
from vl2.ops.native.structures import Model


def route(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, config: MoEConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.route` (ops/backend.py)."""
    workers = row_workers(x)
    if workers is None:
        return reference.route(x, weight, bias, config)
    return workers.route(x, weight, bias, describe_choice(config))


@functools.cache
def describe_choice(config: MoEConfig) -> Model:
    """Of a model only how it chooses experts."""
    model = Model()
    set_choice(model, config)
    return model


def set_choice(model: Model, config: MoEConfig) -> None:
    model.num_experts, model.num_active = config.num_experts, config.num_active
    model.num_groups, model.num_active_groups = config.num_groups, config.num_active_groups
    model.choice = TOPK_METHODS.index(config.topk_method)
    model.scoring = SCORING_FUNCS.index(config.scoring_func)
    model.normalises, model.routed_scale = config.norm_topk_prob, config.routed_scaling_factor
