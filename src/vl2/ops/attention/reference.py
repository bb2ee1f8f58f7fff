"""Attention over a paged cache: one case for decoding (a chunk of one token), prefill and chunked prefill.

Each sequence is computed by itself, in float32 from the cache's dtype on, in blocks of query rows that bound the memory
of the scores. Pages of a sequence are gathered by its block table; the pool itself is never copied.

A row's bits depend on its own context alone: contexts are filled up to a multiple of `KV_SPLIT` positions (a masked
position adds exact zeros) and values are summed split by split, so it does not matter how long the context of the other
rows in its chunk is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.rows import pad_rows, round_up

MAX_SCORES = 1 << 24
"""Scores [H, rows, context] held at once, elements of float32 (64 MiB)."""

MAX_QUERY_ROWS = 256
"""A block of rows reads the context up to its own last row only, so smaller blocks skip more of what is hidden."""

KV_SPLIT = 256


def gather_pages(pool: torch.Tensor, block_table: torch.Tensor, context_length: int) -> torch.Tensor:
    """The rows of a sequence, as float32, with zero rows up to a multiple of KV_SPLIT.

    pool         [pages, page size, ...]
    block_table  [max pages] int32
    Returns      [aligned context, ...] float32
    """
    num_pages = -(-context_length // pool.shape[1])
    rows = pool[block_table[:num_pages]].flatten(0, 1)[:context_length].float()
    return F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, -context_length % KV_SPLIT))


def attend_heads(q: torch.Tensor, pool: torch.Tensor, batch: AttentionBatch, scale: float) -> torch.Tensor:
    """`Backend.attend_heads` (ops/backend.py)."""
    out = torch.zeros_like(q)
    heads_per_kv = q.shape[1] // pool.shape[3]
    for block_table, chunk in zip(batch.block_tables, batch.chunks, strict=True):
        k = gather_pages(pool[0], block_table, chunk.context_length).permute(1, 2, 0)
        v = gather_pages(pool[1], block_table, chunk.context_length).transpose(0, 1)
        if heads_per_kv > 1:
            k, v = k.repeat_interleave(heads_per_kv, 0), v.repeat_interleave(heads_per_kv, 0)
        for rows, first, seen in _query_blocks(chunk, q.shape[1], batch.row_multiple):
            own = (q[rows].float() * scale).transpose(0, 1)
            own = pad_rows(own, round_up(own.shape[1], batch.row_multiple), dim=1)
            scores = own @ k[..., :seen]
            probs = scores.masked_fill_(_hidden(first, own.shape[1], seen, q.device), float("-inf")).softmax(-1)
            result = _weighted_sum(probs, v[:, :seen])
            out[rows] = result[:, : rows.stop - rows.start].transpose(0, 1).to(out.dtype)
    return out


def attend_latent(q: torch.Tensor, pool: torch.Tensor, batch: AttentionBatch, rank: int, scale: float) -> torch.Tensor:
    """`Backend.attend_latent` (ops/backend.py)."""
    heads = q.shape[1]
    out = torch.zeros(*q.shape[:2], rank, dtype=torch.float32, device=q.device)
    for block_table, chunk in zip(batch.block_tables, batch.chunks, strict=True):
        kv = gather_pages(pool, block_table, chunk.context_length)
        for rows, first, seen in _query_blocks(chunk, heads, batch.row_multiple):
            own = q[rows].float() * scale
            own = pad_rows(own, round_up(len(own), batch.row_multiple))
            scores = (own.flatten(0, 1) @ kv[:seen].T).unflatten(0, (-1, heads))  # heads are rows too
            hidden = _hidden(first, len(own), seen, q.device).unsqueeze(1)
            probs = scores.masked_fill_(hidden, float("-inf")).softmax(-1).flatten(0, 1)
            result = _weighted_sum(probs, kv[:seen, :rank]).unflatten(0, (-1, heads))
            out[rows] = result[: rows.stop - rows.start]
    return out


def _query_blocks(chunk: ChunkShape, heads: int, row_multiple: int) -> Iterator[tuple[slice, int, int]]:
    """(query rows, position of the first of them, aligned context that they see) in blocks of bounded size."""
    step = min(MAX_QUERY_ROWS, round_up(max(1, MAX_SCORES // (heads * chunk.context_length)), row_multiple))
    first_position = chunk.context_length - chunk.length
    for offset in range(0, chunk.length, step):
        end = min(offset + step, chunk.length)
        seen = round_up(first_position + end, KV_SPLIT)
        yield slice(chunk.start + offset, chunk.start + end), first_position + offset, seen


def _hidden(first_position: int, num_rows: int, context: int, device: torch.device) -> torch.Tensor:
    """[rows, context] bool: what row i, at first_position + i, must not see."""
    positions = torch.arange(first_position, first_position + num_rows, device=device)
    return torch.arange(context, device=device) > positions[:, None]


def _weighted_sum(probs: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """probs [..., rows, context] @ values [..., context, width], added up split by split in order."""
    splits = zip(probs.split(KV_SPLIT, dim=-1), values.split(KV_SPLIT, dim=-2), strict=True)
    first_probs, first_values = next(splits)
    total = first_probs @ first_values
    for split_probs, split_values in splits:
        total += split_probs @ split_values
    return total
