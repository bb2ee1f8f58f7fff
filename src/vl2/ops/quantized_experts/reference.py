"""The experts of a MoE layer with quantised weights, in torch."""

from __future__ import annotations

import torch

from vl2.ops.experts.reference import group, swiglu
from vl2.ops.quantized_experts.weights import QuantizedExperts
from vl2.ops.quantized_linear.reference import quantized_linear
from vl2.ops.quantized_weight.weight import QuantizedWeight
from vl2.ops.rows import RowRounding
from vl2.ops.saturate import to_dtype


def mix_quantized_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    experts: QuantizedExperts,
    rounding: RowRounding = RowRounding(),
) -> torch.Tensor:
    """`Backend.mix_quantized_experts` (ops/backend.py). Shared experts are the last choices of every token."""
    ids, weights = experts.with_shared(ids, weights)
    groups = group(ids, RowRounding())

    def multiply_groups(rows: torch.Tensor, matrices: QuantizedWeight) -> torch.Tensor:
        chunks = zip(groups.experts, rows.split(groups.sizes), strict=True)
        return torch.cat([quantized_linear(chunk, matrices[expert], None, rounding) for expert, chunk in chunks])

    inner = swiglu(multiply_groups(x.index_select(0, groups.tokens), experts.gate_up))
    results = multiply_groups(inner, experts.down).index_select(0, groups.rows)
    return to_dtype((results.view(*ids.shape, -1) * weights.unsqueeze(-1)).sum(1), x.dtype)
