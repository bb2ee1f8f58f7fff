"""What is rotated, and what is written into pages, by the native library in one pass each."""

from __future__ import annotations

import torch

from vl2.ops.native.prompts import row_workers
from vl2.ops.rope import reference
from vl2.ops.rope.table import RopeTable


def write_heads(
    qkv: torch.Tensor, rope: RopeTable, positions: torch.Tensor, slots: torch.Tensor, pool: torch.Tensor
) -> torch.Tensor:
    """`Backend.write_heads` (ops/backend.py)."""
    workers = row_workers(qkv)
    if workers is None or pool.dtype != qkv.dtype:
        return reference.write_heads(qkv, rope, positions, slots, pool)
    return workers.write_heads(qkv, rope, positions, slots, pool)


def write_latent(
    latent_and_key: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    rope: RopeTable,
    positions: torch.Tensor,
    slots: torch.Tensor,
    pool: torch.Tensor,
) -> None:
    """`Backend.write_latent` (ops/backend.py)."""
    workers = row_workers(latent_and_key)
    if workers is None or not pool.dtype == latent_and_key.dtype == norm_weight.dtype:
        reference.write_latent(latent_and_key, norm_weight, eps, rope, positions, slots, pool)
    else:
        workers.write_latent(latent_and_key, norm_weight, eps, rope, positions, slots, pool)


def rotate_queries(q: torch.Tensor, rope: RopeTable, positions: torch.Tensor) -> torch.Tensor:
    """q [T, H, D], of which the last dimensions are rotated in pairs → [T, H, D]."""
    workers = row_workers(q)
    if workers is not None:
        return workers.rotate_queries(q, rope, positions)
    plain, turned = q.split((q.shape[2] - 2 * rope.cos.shape[1], 2 * rope.cos.shape[1]), dim=-1)
    return torch.cat((plain, reference.rotate_pairs(turned, rope.rows(positions))), dim=-1)
