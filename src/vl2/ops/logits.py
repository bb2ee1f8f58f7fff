"""The last projection. Logits are float32: rounding them to bfloat16 would tie the best tokens with each other.

A CPU sums products of bfloat16 in float32, but torch rounds the result to bfloat16. Either it is asked twice: for the
product, and for the product minus what it gave, which is the rounding's error (exact to 2^-17 of the result). Or only
the best of a row are computed again, which reads the weight once: with large vocabularies that is a third of a step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vl2.ops.wide_product import multiply

ROWS_AT_ONCE = 8192
"""Of the weight, where all logits are exact: one size for all vocabularies, for which rows are known to agree."""

NUM_REFINED = 128
"""Logits of a row that are exact in any case; OpenAI's API shows 20."""


def project_logits(hidden: torch.Tensor, weight: torch.Tensor, is_exact: bool = True) -> torch.Tensor:
    """hidden [L, C], weight [V, C] → [L, V] float32, not rounded to the model's dtype.

    is_exact  all of them; else, on a CPU in bfloat16, those that are not among a row's best are rounded, as they are
              in the official code
    """
    if weight.is_cuda and weight.dtype != torch.float32:
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    if weight.dtype == torch.float32:
        return F.linear(hidden.float(), weight)
    if is_exact or weight.dtype != torch.bfloat16:
        return torch.cat([multiply(hidden, block.T) for block in weight.split(ROWS_AT_ONCE)], dim=1)
    # torch's product of a matrix with one vector reads the matrix as it lies; that with several copies it first
    rounded = torch.mv(weight, hidden[0]).unsqueeze(0) if len(hidden) == 1 else hidden @ weight.T
    best = rounded.topk(min(NUM_REFINED, len(weight)), sorted=False).indices
    rows = weight.index_select(0, best.flatten()).view(*best.shape, weight.shape[1]).float()
    return rounded.float().scatter_(1, best, (rows @ hidden.float().unsqueeze(-1)).squeeze(-1))
