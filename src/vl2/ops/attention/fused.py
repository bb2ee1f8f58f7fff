"""Prompts by the native library's attention or by torch's fused one, a chunk at a time: scores are never written out.

The sums of torch's depend on the chunk's length, and so do those of MLA's keys if torch expands them: for the
deterministic mode is what the library does alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.native.linear import NativeLinear
from vl2.ops.native.prompts import Workers, attention_workers
from vl2.ops.rope.native import rotate_queries
from vl2.ops.rope.table import RopeTable


def fuse_heads(q: torch.Tensor, pool: torch.Tensor, batch: AttentionBatch, scale: float) -> torch.Tensor:
    """`Backend.attend_heads` (ops/backend.py)."""
    workers = page_workers(q, pool)

    def attend(block_table: torch.Tensor, chunk: ChunkShape, own: torch.Tensor) -> torch.Tensor:
        if workers is not None:
            return workers.attend_pages(own, pool, block_table, chunk.context_length, scale)
        keys, values = (gather(half, block_table, chunk.context_length, q.dtype) for half in pool)
        return _attend(own, keys, values, chunk, scale)

    return _by_chunk(q, batch, q.shape[2], attend)


def page_workers(q: torch.Tensor, pool: torch.Tensor) -> Workers | None:
    """Who attends to keys and values in their pages, pool [2, pages, page size, K, D]; None: they are gathered."""
    return attention_workers(q) if pool.dtype == q.dtype and pool.shape[2] % 16 == 0 else None


def fuse_mla(
    q: torch.Tensor,
    kv_b: torch.Tensor,
    pool: torch.Tensor,
    rope: RopeTable,
    positions: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    expand: NativeLinear | None = None,
) -> torch.Tensor:
    """`Backend.attend_mla` (ops/backend.py), expanded: keys and values of every head are made of the latent rows.

    expand  kv_b as the library reads it, if it is to multiply
    """
    heads, rank, width = q.shape[1], kv_b.shape[1], q.shape[2]
    nope = width - (pool.shape[2] - rank)
    value_dim = kv_b.shape[0] // heads - nope
    q = rotate_queries(q, rope, positions)

    def attend(block_table: torch.Tensor, chunk: ChunkShape, own: torch.Tensor) -> torch.Tensor:
        latent, key = gather(pool, block_table, chunk.context_length, q.dtype).split((rank, width - nope), -1)
        expanded = F.linear(latent, kv_b.to(q.dtype)) if expand is None else expand.multiply(latent)
        expanded = expanded.unflatten(-1, (heads, -1))
        keys = torch.cat((expanded[..., :nope], key.unsqueeze(1).expand(-1, heads, -1)), dim=-1)
        return _attend(own, keys, expanded[..., nope:], chunk, scale)

    return _by_chunk(q, batch, value_dim, attend).flatten(1)


def _by_chunk(
    q: torch.Tensor,
    batch: AttentionBatch,
    value_dim: int,
    attend: Callable[[torch.Tensor, ChunkShape, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """attend(block table, chunk, its rows of q) of each; zeros in rows that belong to none."""
    if len(batch.chunks) == 1 and batch.chunks[0].length == len(q):
        return attend(batch.block_tables[0], batch.chunks[0], q)
    out = q.new_zeros(len(q), q.shape[1], value_dim)
    for block_table, chunk in zip(batch.block_tables, batch.chunks, strict=True):
        rows = slice(chunk.start, chunk.start + chunk.length)
        out[rows] = attend(block_table, chunk, q[rows])
    return out


def gather(pool: torch.Tensor, block_table: torch.Tensor, context_length: int, dtype: torch.dtype) -> torch.Tensor:
    """The rows of a sequence: pool [pages, page size, ...], float8 or dtype → [context, ...] dtype."""
    num_pages = -(-context_length // pool.shape[1])
    return pool.index_select(0, block_table[:num_pages]).flatten(0, 1)[:context_length].to(dtype)


def _attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, chunk: ChunkShape, scale: float) -> torch.Tensor:
    """q [length, H, D], keys [context, K, D], values [context, K, Dv] → [length, H, Dv]."""
    workers = attention_workers(q)
    if workers is not None:
        return workers.attend(q, keys, values, scale, is_causal=True)
    value_dim, missing = values.shape[2], q.shape[2] - values.shape[2]  # torch's knows one width of heads only
    values = F.pad(values, (0, max(missing, 0)))
    q, keys = (F.pad(x, (0, max(-missing, 0))) for x in (q, keys))
    is_fresh = chunk.length == chunk.context_length
    mask = None
    if not is_fresh:
        mask = torch.ones(chunk.length, chunk.context_length, dtype=torch.bool)
        mask = mask.tril_(chunk.context_length - chunk.length)
    own, keys_by_head, values_by_head = (x.transpose(0, 1).unsqueeze(0) for x in (q, keys, values))
    out = F.scaled_dot_product_attention(
        own,
        keys_by_head,
        values_by_head,
        attn_mask=mask,
        is_causal=is_fresh,
        scale=scale,
        enable_gqa=q.shape[1] > keys.shape[1],
    )
    return out.squeeze(0).transpose(0, 1)[..., :value_dim]
