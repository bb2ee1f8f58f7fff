"""GEMMs whose epilogue cuBLAS computes on the accumulators, before they are rounded and written."""

from __future__ import annotations

import torch

from vl2.ops import activation


def linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`Backend.linear_gelu` (ops/backend.py). float16 must saturate between the two, and goes the plain way."""
    if weight.dtype != torch.bfloat16:
        return activation.linear_gelu(x, weight, bias)
    rows = x.flatten(0, -2)
    return torch._addmm_activation(bias, rows, weight.T, use_gelu=True).view(*x.shape[:-1], -1)
