"""The router of a MoE layer: which experts a token takes, and with what weights. Always float32.

Source: `MoEGate` of the official modeling_deepseek.py. Equal scores go to the lower expert id, so that a choice never
depends on the device or on the batch.
"""

from __future__ import annotations

import torch

from vl2.core.model_config import MoEConfig
from vl2.ops.activation import sigmoid


def route(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, config: MoEConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.route` (ops/backend.py)."""
    return choose(x.float() @ weight.T, bias, config)


def choose(scores: torch.Tensor, bias: torch.Tensor | None, config: MoEConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """scores [T, E] float32, raw → ids and weights as of `Backend.route`."""
    scores = scores.softmax(-1) if config.scoring_func == "softmax" else sigmoid(scores)
    ids = _top(eligible_scores(scores, bias, config), config.num_active)
    weights = scores.gather(-1, ids)
    if config.norm_topk_prob and config.num_active > 1:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return ids, weights * config.routed_scaling_factor


def eligible_scores(scores: torch.Tensor, bias: torch.Tensor | None, config: MoEConfig) -> torch.Tensor:
    """Scores to choose by [T, E]: those of unchosen groups are set to 0.0 (not -inf), as the official code does."""
    if config.topk_method == "greedy":
        return scores
    choice = scores if bias is None else scores + bias
    if config.num_groups == 1:
        return choice
    grouped = choice.unflatten(-1, (config.num_groups, -1))
    if config.topk_method == "noaux_tc":
        group_scores = grouped.topk(2, dim=-1).values.sum(-1)
    else:
        group_scores = grouped.amax(-1)
    chosen = torch.zeros_like(group_scores, dtype=torch.bool)
    chosen.scatter_(-1, _top(group_scores, config.num_active_groups), True)
    return grouped.masked_fill(~chosen.unsqueeze(-1), 0.0).flatten(-2)


def _top(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Ids [T, k] of the k largest; a stable sort gives equal scores to the lower id, which topk does not promise."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :k]
