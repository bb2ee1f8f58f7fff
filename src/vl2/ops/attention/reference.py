"""Attention over a paged cache: one case for decoding (a chunk of one token), prefill and chunked prefill.

Each sequence is computed by itself, in blocks of query rows that bound the memory of the scores. Pages of a sequence
are gathered by its block table; the pool itself is never copied. Scores, softmax and sums are float32; a bfloat16
model's probabilities are rounded to bfloat16 for the product with the values, which is four times as fast then.

A row's bits depend on its own context alone: contexts are filled up to a multiple of `KV_SPLIT` positions (a masked
position adds exact zeros) and values are summed split by split, so it does not matter how long the context of the other
rows in its chunk is. The native library's attention keeps to that rule too and takes the place of this where it can.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from vl2.ops.attention import fast
from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.attention.fast import is_fast
from vl2.ops.attention.fused import fuse_heads, fuse_mla, gather
from vl2.ops.native.linear import NativeLinear
from vl2.ops.native.prompts import attention_workers
from vl2.ops.rope.reference import absorb_queries, expand_values
from vl2.ops.rope.table import RopeTable
from vl2.ops.rows import pad_rows, round_up
from vl2.ops.wide_product import multiply

MAX_SCORES = 1 << 21
"""Scores [H, rows, context] held at once, elements of float32 (8 MiB)."""

MAX_QUERY_ROWS = 128
"""A block of rows reads the context up to its own last row only, so smaller blocks skip more of what is hidden."""

KV_SPLIT = 256


@dataclass(frozen=True, slots=True)
class QueryBlock:
    """Some query rows of a chunk."""

    rows: slice  # of the step
    num_padded: int  # their number with zero rows: few sizes, as kernels are compiled for each
    first_position: int  # of the first row
    context: int  # positions up to that of the last row, aligned to KV_SPLIT

    @property
    def num_rows(self) -> int:
        return self.rows.stop - self.rows.start


def gather_pages(
    pool: torch.Tensor, block_table: torch.Tensor, context_length: int, dtype: torch.dtype
) -> torch.Tensor:
    """The rows of a sequence, with zero rows up to a multiple of KV_SPLIT.

    pool         [pages, page size, ...], float8 or dtype
    block_table  [max pages] int32
    Returns      [aligned context, ...] dtype
    """
    rows = gather(pool, block_table, context_length, dtype)
    return F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, -context_length % KV_SPLIT))


def attend_heads(q: torch.Tensor, pool: torch.Tensor, batch: AttentionBatch, scale: float) -> torch.Tensor:
    """`Backend.attend_heads` (ops/backend.py)."""
    if is_fast(batch, q):
        return fast.attend_heads(q, pool, batch, scale)
    if attention_workers(q) is not None:
        return fuse_heads(q, pool, batch, scale)
    out = torch.zeros_like(q)
    heads_per_kv = q.shape[1] // pool.shape[3]
    for block_table, chunk in zip(batch.block_tables, batch.chunks, strict=True):
        gathered = (gather_pages(half, block_table, chunk.context_length, q.dtype).transpose(0, 1) for half in pool)
        keys, values = (x.repeat_interleave(heads_per_kv, 0) if heads_per_kv > 1 else x.contiguous() for x in gathered)
        for block in _query_blocks(chunk, q.shape[1], batch.row_multiple):
            own = pad_rows(q[block.rows].transpose(0, 1), block.num_padded, dim=1).contiguous()
            scores = multiply(own, keys[:, : block.context].transpose(1, 2)).mul_(scale)
            _hide(scores, block)
            result = _weighted_sum(scores.softmax(-1), values[:, : block.context])
            out[block.rows] = result[:, : block.num_rows].transpose(0, 1).to(out.dtype)
    return out


def attend_latent(q: torch.Tensor, pool: torch.Tensor, batch: AttentionBatch, rank: int, scale: float) -> torch.Tensor:
    """Causal attention on latent rows: every head reads the same row, whose first R numbers are also the value.

    q        [Q, H, R + Dr]
    pool     [pages, page size, R + Dr]
    Returns  [Q, H, R] float32
    """
    heads = q.shape[1]
    out = torch.zeros(*q.shape[:2], rank, dtype=torch.float32, device=q.device)
    multiple = batch.row_multiple // math.gcd(batch.row_multiple, heads)  # heads are rows of the products too
    for block_table, chunk in zip(batch.block_tables, batch.chunks, strict=True):
        keys = gather_pages(pool, block_table, chunk.context_length, q.dtype)
        for block in _query_blocks(chunk, heads, multiple):
            own = pad_rows(q[block.rows], block.num_padded).flatten(0, 1)
            seen = keys[: block.context]
            scores = multiply(own, seen.T).mul_(scale)
            _hide(scores.unflatten(0, (-1, heads)).transpose(0, 1), block)
            result = _weighted_sum(scores.softmax(-1), seen[:, :rank]).unflatten(0, (-1, heads))
            out[block.rows] = result[: block.num_rows]
    return out


def _query_blocks(chunk: ChunkShape, heads: int, row_multiple: int) -> Iterator[QueryBlock]:
    affordable = MAX_SCORES // (heads * chunk.context_length)
    step = round_up(1 << min(max(affordable, 1), MAX_QUERY_ROWS).bit_length() - 1, row_multiple)
    first_position = chunk.context_length - chunk.length
    for offset in range(0, chunk.length, step):
        end = min(offset + step, chunk.length)
        yield QueryBlock(
            rows=slice(chunk.start + offset, chunk.start + end),
            num_padded=round_up(1 << (end - offset - 1).bit_length(), row_multiple),
            first_position=first_position + offset,
            context=round_up(first_position + end, KV_SPLIT),
        )


def _hide(scores: torch.Tensor, block: QueryBlock) -> None:
    """Take from each row of scores [..., rows, context] what comes after its own position."""
    after = scores[..., block.first_position :]
    after += _later(scores.device)[: after.shape[-2], : after.shape[-1]]


@functools.cache
def _later(device: torch.device) -> torch.Tensor:
    """[rows, positions after that of the first row]: -inf where the position comes after that of the row, else 0."""
    return torch.full((MAX_QUERY_ROWS, MAX_QUERY_ROWS + KV_SPLIT), float("-inf"), device=device).triu(1)


def _weighted_sum(probs: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """probs [..., rows, context] @ values [..., context, width] → float32, added up split by split in order."""
    splits = zip(probs.to(values.dtype).split(KV_SPLIT, dim=-1), values.split(KV_SPLIT, dim=-2), strict=True)
    first_probs, first_values = next(splits)
    total = (first_probs @ first_values).float()
    for split_probs, split_values in splits:
        total += split_probs @ split_values
    return total


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
    """`Backend.attend_mla` (ops/backend.py), absorbed: heads read the latent rows themselves.

    expand  as of `fuse_mla`, whose way it goes then
    """
    if is_fast(batch, q):
        return fast.attend_mla(q, kv_b, pool, rope, positions, batch, scale, expand)
    if expand is not None and attention_workers(q) is not None:
        return fuse_mla(q, kv_b, pool, rope, positions, batch, scale, expand)
    heads, rank = q.shape[1], kv_b.shape[1]
    nope = q.shape[2] - (pool.shape[2] - rank)
    per_head = kv_b.unflatten(0, (heads, -1))
    absorbed = absorb_queries(q, per_head[:, :nope], rope, positions)
    return expand_values(attend_latent(absorbed, pool, batch, rank, scale), per_head[:, nope:], q.dtype)
