"""The experts of a prompt: packed ones by the native library in one call. Others: products by torch, what lies between
them by the library in one pass each."""

from __future__ import annotations

import torch

from vl2.ops.experts import reference
from vl2.ops.experts.weights import ExpertWeights, Matrices
from vl2.ops.linear import multiply
from vl2.ops.native.prompts import row_workers
from vl2.ops.rows import RowRounding, pad_rows


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """`Backend.swiglu` (ops/backend.py)."""
    workers = row_workers(gate_up)
    if workers is None:
        return reference.swiglu(gate_up)
    return workers.swiglu([gate_up.flatten(0, -2)]).view(*gate_up.shape[:-1], gate_up.shape[-1] // 2)


def mix_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    experts: ExpertWeights,
    rounding: RowRounding = RowRounding(),
) -> torch.Tensor:
    """`Backend.mix_experts` (ops/backend.py)."""
    workers = row_workers(x)
    if workers is None:
        return reference.mix_experts(x, ids, weights, experts, rounding)
    if experts.described is not None and workers.mixes_experts:
        return workers.mix_experts(x, ids, weights, experts.described)
    groups = reference.group(ids, rounding)

    def multiply_groups(rows: torch.Tensor, matrices: Matrices) -> list[torch.Tensor]:
        chunks = zip(groups.experts, rows.split(groups.sizes), strict=True)
        return [multiply(chunk, matrices[expert]) for expert, chunk in chunks]

    inner = workers.swiglu(multiply_groups(x.index_select(0, groups.tokens), experts.gate_up))
    results = multiply_groups(inner, experts.down)
    shared = None
    if experts.shared_gate_up is not None and experts.shared_down is not None:
        own = multiply(pad_rows(x, rounding.up(len(x))), experts.shared_gate_up)
        shared = multiply(workers.swiglu([own]), experts.shared_down)[: len(x)]
    return workers.mix(results, groups.rows.numpy(), weights.contiguous(), shared)
