"""Attention outside the deterministic mode: what decodes attends together, prompts each by themselves (`fused.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from vl2.ops.attention.batch import AttentionBatch, count_decodes
from vl2.ops.attention.fused import fuse_heads, fuse_mla, page_workers
from vl2.ops.attention.joint import can_join, join_heads, join_mla
from vl2.ops.native.linear import NativeLinear
from vl2.ops.rope.table import RopeTable


def is_fast(batch: AttentionBatch, q: torch.Tensor) -> bool:
    """Whether what follows serves: not for fixed bits, nor for what torch's fused attention has no kernel for."""
    return not batch.has_fixed_splits and q.device.type == "cpu" and q.dtype != torch.float16


def attend_heads(q: torch.Tensor, pool: torch.Tensor, batch: AttentionBatch, scale: float) -> torch.Tensor:
    """`Backend.attend_heads` (ops/backend.py)."""
    most = 0 if page_workers(q, pool) is None else 1  # a single row gains nothing by what is laid out for several
    if count_decodes(batch.chunks) <= most:
        return fuse_heads(q, pool, batch, scale)
    decodes, rest = _split(batch)
    parts = list(_joinable(decodes, pool[0]))
    if not rest.chunks and len(parts) == 1:
        return join_heads(q, pool, decodes, scale)
    out = fuse_heads(q, pool, rest, scale)
    for rows, part in parts:
        out[rows] = join_heads(q[rows], pool, part, scale)
    return out


def attend_mla(
    q: torch.Tensor,
    kv_b: torch.Tensor,
    pool: torch.Tensor,
    rope: RopeTable,
    positions: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    expand: NativeLinear | None = None,
) -> torch.Tensor:
    """As of `fuse_mla`."""
    decodes, rest = _split(batch)
    parts = list(_joinable(decodes, pool))
    if not rest.chunks and len(parts) == 1:
        return join_mla(q, kv_b, pool, rope, positions, decodes, scale)
    out = fuse_mla(q, kv_b, pool, rope, positions, rest, scale, expand)
    for rows, part in parts:
        out[rows] = join_mla(q[rows], kv_b, pool, rope, positions[rows], part, scale)
    return out


def _split(batch: AttentionBatch) -> tuple[AttentionBatch, AttentionBatch]:
    """(leading chunks of one row, the rest)."""
    return replace(batch, num_decodes=count_decodes(batch.chunks)).split()


def _joinable(decodes: AttentionBatch, pool: torch.Tensor) -> Iterator[tuple[slice, AttentionBatch]]:
    """All of them at once, or where their contexts are too different each by itself; rows of the step."""
    if can_join(decodes, pool):
        yield slice(0, len(decodes.chunks)), decodes
        return
    for row, chunk in enumerate(decodes.chunks):
        own = slice(row, row + 1)
        tables, lengths = decodes.block_tables[own], decodes.context_lengths[own]
        yield own, replace(decodes, chunks=(chunk,), block_tables=tables, context_lengths=lengths)
