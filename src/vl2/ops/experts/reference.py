"""The routed experts of a MoE layer, and the shared ones beside them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch

from vl2.ops.activation import silu
from vl2.ops.experts.weights import ExpertWeights, Matrices
from vl2.ops.linear import multiply
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
        inner = swiglu(saturate(multiply(pad_rows(x, rounding.up(len(x))), experts.shared_gate_up)))
        out += saturate(multiply(inner, experts.shared_down))[: len(x)]
    return to_dtype(out, x.dtype)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """`Backend.swiglu` (ops/backend.py)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return saturate(silu(gate).mul_(up))


@dataclass(frozen=True, slots=True)
class Grouping:
    """(token, choice) pairs by expert; each group is filled up to a size that its GEMM may have."""

    experts: list[int]  # those that were chosen
    sizes: list[int]  # rows of each one's group
    tokens: torch.Tensor  # [rows] int64: the token of each row; any where it only fills up
    rows: torch.Tensor  # [T · A] int64: the row of each pair


def group(ids: torch.Tensor, rounding: RowRounding) -> Grouping:
    """ids [T, A]."""
    expert_of = ids.flatten().cpu().numpy()
    pairs = np.argsort(expert_of, kind="stable")
    experts, counts = np.unique(expert_of, return_counts=True)
    sizes = np.array([rounding.up(count) for count in counts.tolist()], dtype=np.int64)
    places = np.repeat(sizes.cumsum() - sizes - (counts.cumsum() - counts), counts) + np.arange(len(pairs))
    rows, tokens = np.empty(len(pairs), dtype=np.int64), np.zeros(sizes.sum(), dtype=np.int64)
    rows[pairs] = places
    tokens[places] = pairs // ids.shape[1]
    on_device = functools.partial(torch.as_tensor, device=ids.device)
    return Grouping(experts.tolist(), sizes.tolist(), on_device(tokens), on_device(rows))


def routed_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Matrices,
    down: Matrices,
    rounding: RowRounding = RowRounding(),
) -> torch.Tensor:
    """Σ_a weights[t, a] · down_e(silu(gate_e(x)) · up_e(x)) with e = ids[t, a]: [len(ids), C] float32.

    Tokens are sorted by expert, each active expert runs once, and every token's A results are summed in float32 in a
    fixed order, so a row's result does not depend on which other rows chose the same expert.
    """
    if len(ids) == 1 and not rounding.is_exact:
        return _of_one_token(x, ids[0].tolist(), weights, gate_up, down)
    groups = group(ids, rounding)

    def multiply_groups(rows: torch.Tensor, matrices: Matrices) -> torch.Tensor:
        chunks = zip(groups.experts, rows.split(groups.sizes), strict=True)
        return saturate(torch.cat([multiply(chunk, matrices[expert]) for expert, chunk in chunks]))

    inner = swiglu(multiply_groups(x.index_select(0, groups.tokens), gate_up))
    results = multiply_groups(inner, down).index_select(0, groups.rows).to(weights.dtype)
    return results.view(*ids.shape, -1).mul_(weights.unsqueeze(-1)).sum(1)


def _of_one_token(
    x: torch.Tensor, experts: list[int], weights: torch.Tensor, gate_up: Matrices, down: Matrices
) -> torch.Tensor:
    """The same without gathering: where one token decodes, each operation saved is half a percent of the step."""
    inner = swiglu(saturate(torch.cat([multiply(x, gate_up[expert]) for expert in experts])))
    rows = zip(experts, inner.split(1), strict=True)
    results = saturate(torch.cat([multiply(row, down[expert]) for expert, row in rows]))
    return weights @ results.to(weights.dtype)
