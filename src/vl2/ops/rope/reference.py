"""Rotary position embedding in the two pairings that DeepSeek-VL2 uses, and the cache rows that hold its results."""

from __future__ import annotations

import torch

from vl2.ops.norm.reference import rms_norm
from vl2.ops.rope.table import RopeTable
from vl2.ops.saturate import FLOAT8, to_dtype


def rotate_halves(x: torch.Tensor, table: RopeTable) -> torch.Tensor:
    """MHA (Llama's pairing): dimension i is paired with i + D/2.

    x [T, H, D]; table rows [T, D/2] → [T, H, D] in x's dtype, computed in float32.
    """
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = table.cos[:, None], table.sin[:, None]
    return to_dtype(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1), x.dtype)


def rotate_pairs(x: torch.Tensor, table: RopeTable) -> torch.Tensor:
    """MLA: dimensions 2i and 2i+1 are a pair.

    The official code first moves even dimensions to the front; only the order in the result differs, alike for queries
    and keys, so their products are the same. x [T, H, D]; table rows [T, D/2] → [T, H, D] in x's dtype.
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table.cos[:, None], table.sin[:, None]
    return to_dtype(torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2), x.dtype)


def write_heads(
    qkv: torch.Tensor, rope: RopeTable, positions: torch.Tensor, slots: torch.Tensor, pool: torch.Tensor
) -> torch.Tensor:
    """`Backend.write_heads` (ops/backend.py)."""
    kv_heads, head_dim = pool.shape[3:]
    qk, v = qkv.unflatten(-1, (-1, head_dim)).tensor_split((-kv_heads,), dim=1)
    q, k = rotate_halves(qk, rope.rows(positions)).tensor_split((-kv_heads,), dim=1)
    write_rows(pool[0], slots, k)
    write_rows(pool[1], slots, v)
    return q


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
    rank = len(norm_weight)
    latent, key = latent_and_key[:, :rank], latent_and_key[:, rank:]
    key = rotate_pairs(key.unsqueeze(1), rope.rows(positions)).squeeze(1)
    write_rows(pool, slots, torch.cat((rms_norm(latent, norm_weight, eps), key), dim=-1))


def absorb_queries(q: torch.Tensor, keys: torch.Tensor, rope: RopeTable, positions: torch.Tensor) -> torch.Tensor:
    """MLA: take queries into the latent space (q_nope · keys, rounded to the dtype), rotate their last part.

    q          [Q, H, Dn + Dr]
    keys       [H, Dn, R] q's dtype or float32, may be strided: kv_b's key half
    positions  [Q] int64, of these queries
    Returns    [Q, H, R + Dr]
    """
    nope, rotated = q.split((keys.shape[1], q.shape[2] - keys.shape[1]), dim=-1)
    latent = to_dtype(nope.transpose(0, 1).to(keys.dtype) @ keys, q.dtype).transpose(0, 1)
    return torch.cat((latent, rotate_pairs(rotated, rope.rows(positions))), dim=-1)


def expand_values(latent: torch.Tensor, values: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """MLA: take attention's results out of the latent space (latent, rounded to the values' dtype, · valuesᵀ).

    latent   [Q, H, R] float32
    values   [H, Dv, R], may be strided: kv_b's value half
    Returns  [Q, H · Dv] dtype, or the values'
    """
    heads = latent.to(values.dtype).transpose(0, 1) @ values.transpose(1, 2)
    return to_dtype(heads.transpose(0, 1).flatten(1), dtype or values.dtype)


def write_rows(pool: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> None:
    """pool [pages, page size, ...], slots [T] int64, rows [T, ...]: rows[t] goes to slots[t], in float8 rounded."""
    rows = to_dtype(rows, pool.dtype)
    if pool.dtype == FLOAT8:  # a byte is a byte
        pool, rows = pool.view(torch.uint8), rows.view(torch.uint8)
    pool.flatten(0, 1).index_copy_(0, slots, rows)
