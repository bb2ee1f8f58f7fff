"""The experts of a MoE layer with quantised weights, in torch."""

from __future__ import annotations

import torch

from vl2.ops.experts.reference import swiglu
from vl2.ops.quantized_experts.weights import QuantizedExperts
from vl2.ops.quantized_linear.reference import quantized_linear
from vl2.ops.rows import RowRounding
from vl2.ops.saturate import to_dtype


def mix_quantized_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    experts: QuantizedExperts,
    rounding: RowRounding = RowRounding(),
) -> torch.Tensor:
    """`Backend.mix_quantized_experts` (ops/backend.py)."""
    num_tokens, num_chosen = ids.shape
    num_routed = len(experts.gate_up.codes) - experts.num_shared
    order = ids.flatten().argsort(stable=True)
    counts = torch.bincount(ids.flatten(), minlength=num_routed).tolist()
    results = torch.empty(num_tokens * num_chosen, x.shape[1], dtype=torch.float32, device=x.device)
    sorted_results = [
        _run_expert(chunk, experts, expert, rounding)
        for expert, chunk in enumerate(x[order // num_chosen].split(counts))
        if len(chunk)
    ]
    results[order] = torch.cat(sorted_results)
    out = (results.view(num_tokens, num_chosen, -1) * weights.unsqueeze(-1)).sum(1)
    for shared in range(num_routed, num_routed + experts.num_shared):
        out += _run_expert(x, experts, shared, rounding)
    return to_dtype(out, x.dtype)


def _run_expert(x: torch.Tensor, experts: QuantizedExperts, expert: int, rounding: RowRounding) -> torch.Tensor:
    """[M, C] → [M, C] float32 of the dtype's precision."""
    inner = swiglu(quantized_linear(x, experts.gate_up[expert], rounding=rounding))
    return quantized_linear(inner, experts.down[expert], rounding=rounding).float()
