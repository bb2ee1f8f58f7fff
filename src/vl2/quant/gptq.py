"""GPTQ (arXiv:2210.17323) of one matrix: inputs are rounded one after the other, later ones make up for the error.

Symmetric. The inputs that matter most go first (act-order), while there is most left to make up for their errors.
Groups are of neighbours all the same, and their scales are searched before: the format knows nothing of the order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vl2.core.quantization import WeightScheme
from vl2.ops.quantized_weight.codes import fit_scales

DAMPING = 0.01
"""Of the mean of the Hessian's diagonal, added to it; ten times as much where that does not make it definite."""
BLOCK = 128
"""Inputs between two updates of all that follow."""
SHRINKS = torch.linspace(1.0, 0.6, 21)
"""Scales that are tried, as parts of the one at which the largest weight is the last code."""


class Hessian:
    """Σ w · x xᵀ of the inputs [T, K] of a linear, over their total weight w; in float32."""

    def __init__(self, width: int, device: torch.device | str) -> None:
        self.sum = torch.zeros(width, width, dtype=torch.float32, device=device)
        self.total = 0.0

    def add(self, x: torch.Tensor, weights: torch.Tensor) -> None:
        """x [T, K], weights [T] float32."""
        scaled = x.float() * weights.sqrt()[:, None]
        self.sum.addmm_(scaled.T, scaled)
        self.total += float(weights.sum())

    def curvature(self) -> Curvature:
        assert self.total > 0, "nobody saw what this linear is given"
        mean = self.sum / self.total
        importance = mean.diagonal().clamp(min=1e-12)
        order = importance.argsort(descending=True, stable=True)
        return Curvature(importance, order, _inverse_factor(mean[order][:, order]))


@dataclass(frozen=True, slots=True)
class Curvature:
    """What the inputs of a linear say about its weights."""

    importance: torch.Tensor  # [K]: the Hessian's diagonal
    order: torch.Tensor  # [K] int64: inputs by it, the largest first
    factor: torch.Tensor  # [K, K]: the upper Cholesky factor of its inverse, in this order


def quantize_matrix(
    weight: torch.Tensor, curvature: Curvature, scheme: WeightScheme, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [N, K] → codes [N, K] int8, scales [N, G] `dtype`."""
    wide, (importance, order) = weight.float(), (curvature.importance, curvature.order)
    width, limit = wide.shape[1], 1 << (scheme.bits - 1)
    size = scheme.group_size or width
    groups = zip(wide.split(size, 1), importance.split(size), strict=True)
    scales = torch.cat([search_scales(group, own, scheme, dtype) for group, own in groups], 1)
    rest, scale_of = wide[:, order], scales.float()[:, order // size]
    codes = torch.empty_like(rest)
    for start in range(0, width, BLOCK):
        factor = curvature.factor[start : start + BLOCK]
        stop = start + len(factor)
        own, errors = rest[:, start:stop].clone(), torch.empty(len(rest), len(factor), device=rest.device)
        for i, row in enumerate(factor[:, start:stop]):
            scale = scale_of[:, start + i]
            code = (own[:, i] / scale).round_().clamp_(-limit, limit - 1)
            codes[:, start + i] = code
            errors[:, i] = (own[:, i] - code * scale) / row[i]
            own[:, i:] -= errors[:, i : i + 1] * row[i:]
        rest[:, stop:] -= errors @ factor[:, stop:]
    return codes[:, order.argsort()].to(torch.int8), scales


def search_scales(
    weight: torch.Tensor, importance: torch.Tensor, scheme: WeightScheme, dtype: torch.dtype
) -> torch.Tensor:
    """Of one group [N, S]: the scale with the least Σ importance · error², [N, 1] `dtype`; importance [S]."""
    limit = 1 << (scheme.bits - 1)
    largest = fit_scales(weight, WeightScheme(scheme.bits, None), torch.float32)
    best, least = largest.to(dtype), torch.full_like(largest, float("inf"))
    for shrink in SHRINKS.tolist():
        scale = (largest * shrink).to(dtype)
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        rounded = (weight / scale.float()).round_().clamp_(-limit, limit - 1) * scale.float()
        error = ((weight - rounded).square_() * importance).sum(1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def _inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """Of the damped Hessian."""
    damping = DAMPING
    while True:
        damped = hessian.clone()
        damped.diagonal().add_(max(damping * float(hessian.diagonal().mean()), 1e-8))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not int(failed):
                return upper
        damping *= 10
