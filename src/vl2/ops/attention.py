"""Attention over a paged cache: one case for decoding (a chunk of one token), prefill and chunked prefill.

Each sequence is computed by itself, in float32 from the cache's dtype on, in blocks of query rows that bound the memory
of the scores. Pages of a sequence are gathered by its block table; the pool itself is never copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

MAX_SCORES = 1 << 24
"""Scores [H, rows, context] held at once, elements of float32 (64 MiB)."""


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """One sequence's part of a step: query rows `start : start + length`; the last is at `context_length - 1`."""

    start: int
    length: int
    context_length: int


def gather_pages(pool: torch.Tensor, block_table: torch.Tensor, page_size: int, context_length: int) -> torch.Tensor:
    """The first `context_length` rows of a sequence.

    pool         [pages, page size, ...]
    block_table  [max pages] int64
    Returns      [context_length, ...]
    """
    num_pages = -(-context_length // page_size)
    return pool[block_table[:num_pages]].flatten(0, 1)[:context_length]


def paged_attention(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    block_tables: torch.Tensor,
    chunks: Sequence[ChunkShape],
    scale: float,
) -> torch.Tensor:
    """Causal multi-head attention (MHA, grouped where H > K).

    q             [T, H, D]
    k_pool        [pages, page size, K, D]
    v_pool        [pages, page size, K, D]
    block_tables  [S, max pages] int64
    Returns       [T, H, D] in q's dtype
    """
    out = torch.empty_like(q)
    heads_per_kv = q.shape[1] // k_pool.shape[2]
    for block_table, chunk in zip(block_tables, chunks, strict=True):
        k = gather_pages(k_pool, block_table, k_pool.shape[1], chunk.context_length).float().permute(1, 2, 0)
        v = gather_pages(v_pool, block_table, k_pool.shape[1], chunk.context_length).float().permute(1, 0, 2)
        if heads_per_kv > 1:
            k, v = k.repeat_interleave(heads_per_kv, 0), v.repeat_interleave(heads_per_kv, 0)
        for rows, first in _query_blocks(chunk, q.shape[1]):
            scores = q[rows].float().transpose(0, 1) @ k
            out[rows] = (_causal_softmax(scores, first, scale) @ v).transpose(0, 1).to(out.dtype)
    return out


def paged_latent_attention(
    q: torch.Tensor,
    pool: torch.Tensor,
    block_tables: torch.Tensor,
    chunks: Sequence[ChunkShape],
    rank: int,
    scale: float,
) -> torch.Tensor:
    """Causal attention on MLA's latent rows: every head reads the same row, whose first R numbers are also the value.

    q             [T, H, R + Dr]             queries taken into the latent space, and their rotated part
    pool          [pages, page size, R + Dr]  normed latent, rotated shared key
    block_tables  [S, max pages] int64
    Returns       [T, H, R] float32
    """
    out = torch.empty(*q.shape[:2], rank, dtype=torch.float32, device=q.device)
    for block_table, chunk in zip(block_tables, chunks, strict=True):
        rows_kv = gather_pages(pool, block_table, pool.shape[1], chunk.context_length).float()
        for rows, first in _query_blocks(chunk, q.shape[1]):
            scores = (q[rows].float().flatten(0, 1) @ rows_kv.T).unflatten(0, (-1, q.shape[1])).transpose(0, 1)
            probs = _causal_softmax(scores, first, scale).transpose(0, 1).flatten(0, 1)
            out[rows] = (probs @ rows_kv[:, :rank]).unflatten(0, (-1, q.shape[1]))
    return out


def _query_blocks(chunk: ChunkShape, heads: int) -> Iterator[tuple[slice, int]]:
    """(query rows, position of the first of them) in blocks of bounded size."""
    step = max(1, MAX_SCORES // (heads * chunk.context_length))
    first_position = chunk.context_length - chunk.length
    for offset in range(0, chunk.length, step):
        end = min(offset + step, chunk.length)
        yield slice(chunk.start + offset, chunk.start + end), first_position + offset


def _causal_softmax(scores: torch.Tensor, first_position: int, scale: float) -> torch.Tensor:
    """scores [H, rows, context] float32 → probabilities; row i stands at first_position + i and sees up to itself."""
    scores = scores * scale
    num_rows, context = scores.shape[-2:]
    if num_rows > 1 or first_position + 1 < context:
        positions = torch.arange(first_position, first_position + num_rows, device=scores.device)
        hidden = torch.arange(context, device=scores.device) > positions[:, None]
        scores = scores.masked_fill_(hidden, float("-inf"))
    return scores.softmax(-1)
