"""Decoding of several sequences at once: each has one query row, and their contexts are filled up to the longest.

A few products for all of them take the place of a few for each. In exchange a row's last bits depend on how long the
other contexts are, so this is not for the deterministic mode.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vl2.ops.attention.batch import AttentionBatch
from vl2.ops.rope.reference import absorb_queries, expand_values
from vl2.ops.rope.table import RopeTable
from vl2.ops.rows import pad_rows

MAX_FILLING = 2.0
"""Positions that are gathered, over those that are seen: beyond it each sequence is better computed by itself."""

MAX_ELEMENTS = 2**25
"""Gathered of one pool: 64 MiB of bfloat16."""


def can_join(batch: AttentionBatch, pool: torch.Tensor) -> bool:
    """Whether chunks of one row each are alike and few enough. pool [pages, page size, ...]: keys or values alone."""
    lengths = [chunk.context_length for chunk in batch.chunks]
    gathered, page_size = max(lengths, default=0) * len(lengths), len(pool[0])
    is_alike = gathered <= MAX_FILLING * sum(lengths)
    return bool(lengths) and is_alike and gathered * pool[0].numel() // page_size <= MAX_ELEMENTS


def join_heads(q: torch.Tensor, pool: torch.Tensor, batch: AttentionBatch, scale: float) -> torch.Tensor:
    """`Backend.attend_heads` (ops/backend.py)."""
    hidden = _hidden(batch)
    keys, values = (_gather(half, batch, hidden, q.dtype).transpose(1, 2) for half in pool)
    out = F.scaled_dot_product_attention(
        q[: len(batch.chunks)].unsqueeze(2),
        keys,
        values,
        attn_mask=None if hidden is None else ~hidden[:, None, None],
        scale=scale,
        enable_gqa=q.shape[1] > pool.shape[3],
    )
    return pad_rows(out.squeeze(2), len(q))


def join_mla(
    q: torch.Tensor,
    kv_b: torch.Tensor,
    pool: torch.Tensor,
    rope: RopeTable,
    positions: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
) -> torch.Tensor:
    """`Backend.attend_mla` (ops/backend.py), absorbed; scores, softmax and sums in float32."""
    count, heads, rank = len(batch.chunks), q.shape[1], kv_b.shape[1]
    nope = q.shape[2] - (pool.shape[2] - rank)
    per_head = kv_b.unflatten(0, (heads, -1))
    hidden = _hidden(batch)
    rows = _gather(pool, batch, hidden, torch.float32)
    queries = absorb_queries(q[:count].to(kv_b.dtype), per_head[:, :nope], rope, positions[:count])
    scores = torch.bmm(queries.float(), rows.transpose(1, 2)).mul_(scale)
    if hidden is not None:
        scores.masked_fill_(hidden.unsqueeze(1), float("-inf"))
    latent = torch.bmm(scores.softmax(-1), rows[..., :rank])
    return pad_rows(expand_values(latent, per_head[:, nope:], q.dtype), len(q))


def _gather(pool: torch.Tensor, batch: AttentionBatch, hidden: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """pool [pages, page size, ...] → [S, longest context, ...] dtype, zero where hidden: that is of others."""
    longest = max(chunk.context_length for chunk in batch.chunks)
    tables = batch.block_tables[:, : -(-longest // pool.shape[1])]
    if hidden is not None:
        tables = tables.masked_fill(hidden[:, :: pool.shape[1]], 0)  # any page will do
    rows = pool.index_select(0, tables.flatten()).view(len(tables), -1, *pool.shape[2:])[:, :longest].to(dtype)
    return rows if hidden is None else rows.masked_fill_(hidden.view(*hidden.shape, *(1,) * (rows.dim() - 2)), 0)


def _hidden(batch: AttentionBatch) -> torch.Tensor | None:
    """[S, longest context] bool: what lies behind a sequence's context. None: all are equally long."""
    lengths = {chunk.context_length for chunk in batch.chunks}
    if len(lengths) == 1:
        return None
    return torch.arange(max(lengths), device=batch.context_lengths.device) >= batch.context_lengths.unsqueeze(1)
