"""MLA in Triton: few rows read the latent cache as it is, long chunks take it out of the latent space first."""

from __future__ import annotations

import torch
import triton

from vl2.ops.attention.batch import AttentionBatch
from vl2.ops.attention.kernel import LOG2_E, attend_latent, block, num_tiles, tile_for
from vl2.ops.attention.kernel_expanded import gather_rows, prefill_expanded
from vl2.ops.rope.kernel import absorb_queries, expand_values
from vl2.ops.rope.table import RopeTable
from vl2.ops.saturate import saturate

MIN_ROWS = 48
"""Of a chunk, in the mean: with fewer, kv_b costs more on all positions than the absorbed form does on these rows."""

MAX_KEYS = 1 << 14
"""Positions taken out of the latent space at once, or as many as the step has rows: this bounds the memory."""


def attend_mla(
    q: torch.Tensor,
    kv_b: torch.Tensor,
    pool: torch.Tensor,
    rope: RopeTable,
    positions: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
) -> torch.Tensor:
    """`Backend.attend_mla` (ops/backend.py)."""
    num, num_keys = batch.num_decodes, _num_expanded_keys(len(q), batch)
    if not num_keys:
        return _absorbed(q, kv_b, pool, rope, positions, batch, scale)
    nope, rank = q.shape[2] - (pool.shape[2] - kv_b.shape[1]), kv_b.shape[1]
    value = len(kv_b) // q.shape[1] - nope
    out = torch.empty(len(q), q.shape[1] * value, dtype=q.dtype, device=q.device)
    rest = batch
    if num:
        decodes, rest = batch.split()
        _absorbed(q[:num], kv_b, pool, rope, positions[:num], decodes, scale, out[:num])
    ends = rest.query_starts[1:] if rest.is_fresh else rest.context_lengths.cumsum(0, dtype=torch.int32)
    rows = gather(pool, rest, ends, num_keys)
    keys_values = saturate(torch.mm(rows[:, :rank], kv_b.t()))
    _attend_expanded(q, keys_values, rows, out, rope, rest, ends, rank, nope, scale)
    return out


def _num_expanded_keys(num_rows: int, batch: AttentionBatch) -> int:
    """Positions that the chunks after the decodes see, if taking them out of the latent space pays; else 0."""
    if batch.max_query_rows <= 1:
        return 0
    if batch.is_fresh:
        return num_rows
    contexts = [chunk.context_length for chunk in batch.chunks[batch.num_decodes :]]
    pays = num_rows - batch.num_decodes >= MIN_ROWS * len(contexts)
    return sum(contexts) if pays and sum(contexts) <= max(MAX_KEYS, num_rows) else 0


def _absorbed(
    q: torch.Tensor,
    kv_b: torch.Tensor,
    pool: torch.Tensor,
    rope: RopeTable,
    positions: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    rank, heads = kv_b.shape[1], q.shape[1]
    nope = q.shape[2] - (pool.shape[2] - rank)
    per_head = kv_b.unflatten(0, (heads, -1))
    absorbed = absorb_queries(q, per_head[:, :nope], rope, positions)
    return expand_values(attend_latent(absorbed, pool, batch, rank, scale), per_head[:, nope:], out)


def gather(pool: torch.Tensor, batch: AttentionBatch, ends: torch.Tensor, num_keys: int) -> torch.Tensor:
    """[positions, R + Dr]: the context of chunk s lies before row ends[s]."""
    page_size, width = pool.shape[1:]
    num_chunks, max_pages = batch.block_tables.shape
    rows = torch.empty(num_keys, width, dtype=pool.dtype, device=pool.device)
    longest, block_n = min(num_keys, max_pages * page_size), 16
    if num_chunks:
        gather_rows[triton.cdiv(longest, block_n), num_chunks](
            pool, rows, batch.block_tables, batch.context_lengths, ends, max_pages,
            WIDTH=width, BLOCK_W=triton.next_power_of_2(width), PAGE_SIZE=page_size, BLOCK_N=block_n, num_warps=4,
        )  # fmt: skip
    return rows


def _attend_expanded(
    q: torch.Tensor,
    keys_values: torch.Tensor,
    rows: torch.Tensor,
    out: torch.Tensor,
    rope: RopeTable,
    batch: AttentionBatch,
    ends: torch.Tensor,
    rank: int,
    nope: int,
    scale: float,
) -> None:
    assert q.is_contiguous() and keys_values.is_contiguous() and out.is_contiguous()
    num_rows, heads, width = q.shape
    value, tile = out.shape[1] // heads, tile_for("prefill_expanded", q.dtype)
    prefill_expanded[heads, num_tiles(num_rows, batch, tile.block_m)](
        q, keys_values, rows, rope.cos, rope.sin, out, batch.query_starts, batch.context_lengths, ends,
        scale * LOG2_E, len(batch.block_tables), num_rows,
        HEADS=heads, RANK=rank, NOPE=nope, ROPE=width - nope, VALUE=value, BLOCK_NOPE=block(nope),
        BLOCK_P=block(width - nope), BLOCK_V=block(value), BLOCK_M=tile.block_m, **tile.options,
    )  # fmt: skip
