"""What surrounds attention, in Triton: rotation and cache rows in one pass; MLA's products before and after it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, fetch, wait_for_last
from vl2.ops.rope.table import RopeTable
from vl2.ops.saturate import saturate
from vl2.ops.saturate_kernel import to_dtype

FEW_ROWS, SOME_ROWS = 16, 128
"""As many queries are absorbed by a kernel of small and of larger blocks; more by cuBLAS."""
FEW_BLOCK, SOME_BLOCK = (16, 32), (64, 64)
"""Rows and ranks of a program there."""


@triton.jit
def _write_heads(
    qkv, cos, sin, positions, slots, keys, values, out,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr, BLOCK_HEADS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """BLOCK_HEADS heads of one token, whichever of queries, keys and values they are: only the keys' and values' goal
    is a page, and values are not rotated.
    """
    DIM: tl.constexpr = 2 * HALF
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    dims = tl.arange(0, BLOCK_HALF)[None, :]
    has = (heads < HEADS + 2 * KV_HEADS) & (dims < HALF)
    row = tl.load(positions + token, cache_modifier=".cg") * HALF + dims
    c = tl.load(cos + row, mask=dims < HALF, other=0.0)
    s = tl.load(sin + row, mask=dims < HALF, other=0.0)
    cached = tl.load(slots + token, cache_modifier=".cg") * (KV_HEADS * DIM) + dims
    wait_for_last(CHAINED)  # weights and what the step begins with are there before
    source = qkv + token * ((HEADS + 2 * KV_HEADS) * DIM) + heads * DIM + dims
    first = tl.load(source, mask=has, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=has, other=0.0).to(tl.float32)
    is_value = heads >= HEADS + KV_HEADS
    rotated = to_dtype(tl.where(is_value, first, first * c - second * s), out.dtype.element_ty)
    rotated_2 = to_dtype(tl.where(is_value, second, second * c + first * s), out.dtype.element_ty)

    is_query = heads < HEADS
    target = out + (token * HEADS + heads) * DIM + dims
    tl.store(target, rotated, mask=has & is_query)
    tl.store(target + HALF, rotated_2, mask=has & is_query)
    rotated, rotated_2 = to_dtype(rotated, keys.dtype.element_ty), to_dtype(rotated_2, keys.dtype.element_ty)
    target = keys + cached + (heads - HEADS) * DIM
    tl.store(target, rotated, mask=has & ~is_query & ~is_value)
    tl.store(target + HALF, rotated_2, mask=has & ~is_query & ~is_value)
    target = values + cached + (heads - HEADS - KV_HEADS) * DIM
    tl.store(target, rotated, mask=has & is_value)
    tl.store(target + HALF, rotated_2, mask=has & is_value)


def write_heads(
    qkv: torch.Tensor, rope: RopeTable, positions: torch.Tensor, slots: torch.Tensor, pool: torch.Tensor
) -> torch.Tensor:
    """`Backend.write_heads` (ops/backend.py)."""
    assert qkv.is_contiguous() and pool.is_contiguous() and rope.cos.is_contiguous() and rope.sin.is_contiguous()
    kv_heads, dim = pool.shape[3:]
    num_tokens, all_heads = len(qkv), qkv.shape[1] // dim
    out = torch.empty(num_tokens, all_heads - 2 * kv_heads, dim, dtype=qkv.dtype, device=qkv.device)
    block_heads = min(32, triton.next_power_of_2(all_heads))
    if num_tokens:
        _write_heads[num_tokens, triton.cdiv(all_heads, block_heads)](
            qkv, rope.cos, rope.sin, positions, slots, pool[0], pool[1], out,
            HEADS=out.shape[1], KV_HEADS=kv_heads, HALF=dim // 2, BLOCK_HALF=triton.next_power_of_2(dim // 2),
            BLOCK_HEADS=block_heads, num_warps=4, **chained(qkv.device),
        )  # fmt: skip
    return out


@triton.jit
def _rotate_pairs(source, target, c, s, pairs, has):
    """Rotate dimensions 2i and 2i + 1 of what lies at `source`, to `target`."""
    even = tl.load(source + 2 * pairs, mask=has, other=0.0).to(tl.float32)
    odd = tl.load(source + 2 * pairs + 1, mask=has, other=0.0).to(tl.float32)
    tl.store(target + 2 * pairs, to_dtype(even * c - odd * s, target.dtype.element_ty), mask=has)
    tl.store(target + 2 * pairs + 1, to_dtype(odd * c + even * s, target.dtype.element_ty), mask=has)


@triton.jit(do_not_specialize=["stride"])
def _write_latent(
    latent_and_key, stride, weight, eps, cos, sin, positions, slots, pool,
    RANK: tl.constexpr, PAIRS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_PAIRS: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    _write_row(
        token, latent_and_key, stride, weight, eps, cos, sin, positions, slots, pool, RANK, PAIRS, BLOCK_R, BLOCK_PAIRS,
        CHAINED,
    )  # fmt: skip


@triton.jit
def _write_row(
    token, latent_and_key, stride, weight, eps, cos, sin, positions, slots, pool,
    RANK: tl.constexpr, PAIRS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_PAIRS: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """One token: norm its latent, rotate its key, write both as one row."""
    source = latent_and_key + token * stride
    target = pool + tl.load(slots + token, cache_modifier=".cg") * (RANK + 2 * PAIRS)
    pairs, ranks = tl.arange(0, BLOCK_PAIRS), tl.arange(0, BLOCK_R)
    row, has = tl.load(positions + token, cache_modifier=".cg") * PAIRS + pairs, pairs < PAIRS
    c, s = tl.load(cos + row, mask=has, other=0.0), tl.load(sin + row, mask=has, other=0.0)
    w = tl.load(weight + ranks, mask=ranks < RANK, other=0.0).to(tl.float32)
    wait_for_last(CHAINED)  # weights and what the step begins with are there before
    _rotate_pairs(source + RANK, target + RANK, c, s, pairs, has)
    x = tl.load(source + ranks, mask=ranks < RANK, other=0.0).to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x, 0) / RANK + eps) * w
    tl.store(target + ranks, to_dtype(normed, pool.dtype.element_ty), mask=ranks < RANK)


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
    assert latent_and_key.stride(1) == 1 and pool.is_contiguous()
    rank, pairs = len(norm_weight), rope.cos.shape[1]
    if len(latent_and_key):
        _write_latent[(len(latent_and_key),)](
            latent_and_key, latent_and_key.stride(0), norm_weight, eps, rope.cos, rope.sin, positions, slots, pool,
            RANK=rank, PAIRS=pairs, BLOCK_R=triton.next_power_of_2(rank), BLOCK_PAIRS=triton.next_power_of_2(pairs),
            num_warps=2, **chained(pool.device),
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows"])
def _absorb_queries(
    q, row_stride, keys, out, num_rows, head_stride, dim_stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    _absorb(
        q, row_stride, keys, out, num_rows, head_stride, dim_stride, tl.program_id(0), tl.program_id(1),
        tl.program_id(2), HEADS, DIM, WIDTH, RANK, BLOCK_M, BLOCK_D, BLOCK_R, CHAINED,
    )  # fmt: skip


@triton.jit
def _absorb(
    q, row_stride, keys, out, num_rows, head_stride, dim_stride, rank_block, head, row_block,
    HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """BLOCK_M queries of one head times BLOCK_R columns of its key matrix."""
    rows, dims = row_block * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    ranks = rank_block * BLOCK_R + tl.arange(0, BLOCK_R)
    is_row = (rows < num_rows)[:, None]
    in_keys = (dims < DIM)[:, None] & (ranks < RANK)[None, :]
    key = tl.load(keys + head * head_stride + dims[:, None] * dim_stride + ranks[None, :], mask=in_keys, other=0.0)
    wait_for_last(CHAINED)  # only the weights are there before
    at = q + (rows * row_stride + head * WIDTH)[:, None] + dims[None, :]
    own = tl.load(at, mask=is_row & (dims < DIM)[None, :], other=0.0)
    latent = to_dtype(tl.dot(own, key, input_precision="ieee"), out.dtype.element_ty)
    tl.store(
        out + (rows * HEADS + head)[:, None] * RANK + ranks[None, :], latent, mask=is_row & (ranks < RANK)[None, :]
    )


def absorb_queries(q: torch.Tensor, keys: torch.Tensor, is_exact: bool = False) -> torch.Tensor:
    """MLA: take queries into the latent space.

    q         [Q, H, Dn + Dr], rows may be strided: the last part is left out
    keys      [H, Dn, R], may be strided: kv_b's key half
    is_exact  a row's bits must not depend on the number of rows: one kernel for all numbers
    Returns   [Q, H, R]
    """
    assert q[:1].is_contiguous() and keys.stride(2) == 1
    (num_rows, heads, _), (dim, rank) = q.shape, keys.shape[1:]
    out = torch.empty(num_rows, heads, rank, dtype=q.dtype, device=q.device)
    if num_rows > FEW_ROWS and not is_exact:
        torch.bmm(q[:, :, :dim].transpose(0, 1), keys, out=out.transpose(0, 1))
        return saturate(out)
    block_m, block_r = FEW_BLOCK
    _absorb_queries[triton.cdiv(rank, block_r), heads, triton.cdiv(num_rows, block_m)](
        q, q.stride(0), keys, out, num_rows, keys.stride(0), keys.stride(1), **_sizes(q, keys, FEW_BLOCK), num_warps=4,
        **chained(q.device),
    )  # fmt: skip
    return out


def _sizes(q: torch.Tensor, keys: torch.Tensor, block: tuple[int, int]) -> dict[str, int]:
    """Of `_absorb`."""
    (_, heads, width), (dim, rank) = q.shape, keys.shape[1:]
    blocks = dict(BLOCK_M=block[0], BLOCK_D=max(16, triton.next_power_of_2(dim)), BLOCK_R=block[1])
    return dict(HEADS=heads, DIM=dim, WIDTH=width, RANK=rank) | blocks


@triton.jit(do_not_specialize=["stride", "num_rows"])
def _write_and_absorb(
    latent_and_key, stride, weight, eps, cos, sin, positions, slots, pool, q, row_stride, keys, out, num_rows,
    head_stride, dim_stride, PAIRS: tl.constexpr, BLOCK_LATENT: tl.constexpr, BLOCK_PAIRS: tl.constexpr,
    HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """The first programs write a row each, the others absorb queries: neither needs the other."""
    token = tl.program_id(0).to(tl.int64)
    if token < num_rows:
        _write_row(
            token, latent_and_key, stride, weight, eps, cos, sin, positions, slots, pool, RANK, PAIRS, BLOCK_LATENT,
            BLOCK_PAIRS, CHAINED,
        )  # fmt: skip
    else:
        number, num_blocks = tl.program_id(0) - num_rows, tl.cdiv(RANK, BLOCK_R)
        _absorb(
            q, row_stride, keys, out, num_rows, head_stride, dim_stride, number % num_blocks,
            number // num_blocks % HEADS, number // num_blocks // HEADS, HEADS, DIM, WIDTH, RANK, BLOCK_M,
            BLOCK_D, BLOCK_R, CHAINED,
        )  # fmt: skip


def write_and_absorb(
    latent_and_key: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    rope: RopeTable,
    positions: torch.Tensor,
    slots: torch.Tensor,
    pool: torch.Tensor,
    q: torch.Tensor,
    keys: torch.Tensor,
) -> torch.Tensor:
    """`write_latent` and `absorb_queries` of the same tokens, in one launch if they are not many; returns [T, H, R].
    Rows of both may be strided."""
    assert latent_and_key.stride(1) == 1 and pool.is_contiguous() and q[:1].is_contiguous()
    assert keys.stride(2) == 1
    (num_rows, heads, _), rank, pairs = q.shape, len(norm_weight), rope.cos.shape[1]
    most = FEW_ROWS if q.dtype == torch.float32 else SOME_ROWS
    if not 0 < num_rows <= most:
        write_latent(latent_and_key, norm_weight, eps, rope, positions, slots, pool)
        return absorb_queries(q, keys)
    out = torch.empty(num_rows, heads, rank, dtype=q.dtype, device=q.device)
    block = FEW_BLOCK if num_rows <= FEW_ROWS else SOME_BLOCK
    _write_and_absorb[(num_rows + triton.cdiv(num_rows, block[0]) * heads * triton.cdiv(rank, block[1]),)](
        latent_and_key, latent_and_key.stride(0), norm_weight, eps, rope.cos, rope.sin, positions, slots, pool, q,
        q.stride(0), keys, out, num_rows, keys.stride(0), keys.stride(1), PAIRS=pairs,
        BLOCK_LATENT=triton.next_power_of_2(rank), BLOCK_PAIRS=triton.next_power_of_2(pairs),
        **_sizes(q, keys, block), num_warps=4, **chained(q.device),
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["num_rows"])
def _expand_values(
    latent, values, out, num_rows, head_stride, value_stride,
    HEADS: tl.constexpr, RANK: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of one head's result times BLOCK_D rows of its value matrix."""
    head = tl.program_id(2)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_row, is_dim = (rows < num_rows)[:, None], (dims < DIM)[None, :]
    if CHAINED:
        NUM_BYTES: tl.constexpr = RANK * values.dtype.element_ty.primitive_bitwidth // 8
        fetch(values + head * head_stride + dims * value_stride, dims < DIM, NUM_BYTES)
    wait_for_last(CHAINED)
    row_heads = (rows * HEADS + head).to(tl.int64)[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, RANK, BLOCK_R):
        ranks = start + tl.arange(0, BLOCK_R)
        x = tl.load(latent + row_heads * RANK + ranks[None, :], mask=is_row & (ranks < RANK)[None, :], other=0.0)
        pointers = values + head * head_stride + dims[None, :] * value_stride + ranks[:, None]
        value = tl.load(pointers, mask=is_dim & (ranks < RANK)[:, None], other=0.0)
        acc = tl.dot(to_dtype(x, value.dtype), value, acc, input_precision="ieee")
    tl.store(out + row_heads * DIM + dims[None, :], to_dtype(acc, out.dtype.element_ty), mask=is_row & is_dim)


def expand_values(
    latent: torch.Tensor, values: torch.Tensor, out: torch.Tensor | None = None, is_exact: bool = False
) -> torch.Tensor:
    """MLA: take attention's results out of the latent space.

    latent    [Q, H, R]
    values    [H, Dv, R], may be strided: kv_b's value half
    is_exact  a row's bits must not depend on the number of rows: one tile for all numbers
    Returns   [Q, H · Dv] values' dtype: `out`, where it is given
    """
    assert latent.is_contiguous() and values.stride(2) == 1
    (num_rows, heads, rank), dim = latent.shape, values.shape[1]
    if out is None:
        out = torch.empty(num_rows, heads * dim, dtype=values.dtype, device=latent.device)
    block_m, block_d, block_r, num_stages = _tile(1 if is_exact else num_rows, values.dtype)
    block_d = min(block_d, max(16, triton.next_power_of_2(dim)))
    if num_rows:
        _expand_values[triton.cdiv(num_rows, block_m), triton.cdiv(dim, block_d), heads](
            latent, values, out, num_rows, values.stride(0), values.stride(1),
            HEADS=heads, RANK=rank, DIM=dim, BLOCK_M=block_m, BLOCK_D=block_d,
            BLOCK_R=min(block_r, max(16, triton.next_power_of_2(rank))), num_warps=4,
            num_stages=num_stages, **chained(out.device),
        )  # fmt: skip
    return out


def _tile(num_rows: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """(rows, columns, ranks of a block, stages). Few rows: small blocks, so that enough of them read the weights."""
    if dtype == torch.float32 or num_rows <= 16:
        return 16, 32, 128, 3
    if num_rows <= 128:
        return 64, 32, 128, 4
    return (64, 64, 64, 3) if num_rows <= 256 else (128, 128, 64, 3)
