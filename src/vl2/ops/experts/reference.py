"""The routed experts of a MoE layer, and the shared ones beside them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vl2.ops.activation import silu
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.rows import RowRounding, pad_rows
from vl2.ops.saturate import saturate, to_dtype


def mix_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    experts: ExpertWeights,
    rounding: RowRounding = RowRounding(),
) -> torch.Tensor:
    """`Backend.mix_experts` (ops/backend.py)."""
    out = routed_experts(x, ids, weights, experts.gate_up, experts.down, rounding)
    if experts.shared_gate_up is not None and experts.shared_down is not None:
        inner = swiglu(saturate(F.linear(x, experts.shared_gate_up)))
        out = out + saturate(F.linear(inner, experts.shared_down)).float()
    return to_dtype(out, x.dtype)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """`Backend.swiglu` (ops/backend.py)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return saturate(silu(gate) * up)


def routed_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    rounding: RowRounding = RowRounding(),
) -> torch.Tensor:
    """Σ_a weights[t, a] · down_e(silu(gate_e(x)) · up_e(x)) with e = ids[t, a]: [T, C] float32.

    Tokens are sorted by expert, each active expert runs once, and every token's A results are summed in float32 in a
    fixed order, so a row's result does not depend on which other rows chose the same expert.
    """
    num_tokens, num_active = ids.shape
    order = ids.flatten().argsort(stable=True)
    counts = torch.bincount(ids.flatten(), minlength=gate_up.shape[0]).tolist()
    rows = x[order // num_active]
    results = torch.empty(num_tokens * num_active, x.shape[1], dtype=torch.float32, device=x.device)
    sorted_results = []
    for expert, chunk in enumerate(rows.split(counts)):
        if len(chunk):
            padded = pad_rows(chunk, rounding.up(len(chunk)))
            inner = swiglu(saturate(F.linear(padded, gate_up[expert])))
            result = saturate(F.linear(inner, down[expert]))
            sorted_results.append(result[: len(chunk)].float())
    results[order] = torch.cat(sorted_results)
    return (results.view(num_tokens, num_active, -1) * weights.unsqueeze(-1)).sum(1)
