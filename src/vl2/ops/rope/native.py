"""Rotated queries, and keys and values in their pages, by the native library in one pass."""

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
