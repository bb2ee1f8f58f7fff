"""The routed experts of a MoE layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vl2.ops.activation import silu
from vl2.ops.rows import RowRounding, pad_rows
from vl2.ops.saturate import saturate


def routed_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    rounding: RowRounding = RowRounding(),
) -> torch.Tensor:
    """Σ_a weights[t, a] · down_e(silu(gate_e(x)) · up_e(x)) with e = ids[t, a].

    Tokens are sorted by expert, each active expert runs once, and every token's A results are summed in float32 in a
    fixed order, so a row's result does not depend on which other rows chose the same expert.

    x             [T, C]      model dtype
    ids           [T, A]      int64
    weights       [T, A]      float32
    gate_up       [E, 2F, C]  model dtype: gate rows, then up rows
    down          [E, C, F]   model dtype
    rounding      of the row count of each GEMM (ops/rows.py)
    Returns       [T, C]      float32
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
            gate, up = saturate(F.linear(padded, gate_up[expert])).chunk(2, dim=-1)
            result = saturate(F.linear(saturate(silu(gate) * up), down[expert]))
            sorted_results.append(result[: len(chunk)].float())
    results[order] = torch.cat(sorted_results)
    return (results.view(num_tokens, num_active, -1) * weights.unsqueeze(-1)).sum(1)
