"""Attention on rows taken out of the latent space: keys and values of every head, packed (MLA's prefill).

Absorbed, a pair of query and position costs 2R + Dr products and sums a head; expanded it costs Dn + Dr + Dv, about a
third, and kv_b is applied to each position once instead of to each query.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vl2.ops.attention.kernel_common import FLOOR, find_tile, page_slots, rotate_pairs, seen_positions
from vl2.ops.attention.kernel_heads import add_weighted
from vl2.ops.float8.kernel_common import from_float8
from vl2.ops.saturate_kernel import to_dtype


@triton.jit(
    do_not_specialize=["max_pages"],
    do_not_specialize_on_alignment=["block_tables", "context_lengths", "key_ends"],
)
def gather_rows(
    pool, rows, block_tables, context_lengths, key_ends, max_pages,
    WIDTH: tl.constexpr, BLOCK_W: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Copy BLOCK_N positions of one chunk from its pages: its context ends before row key_ends[chunk]."""
    chunk, first = tl.program_id(1), tl.program_id(0) * BLOCK_N
    context = tl.load(context_lengths + chunk)
    if first >= context:
        return
    target = (tl.load(key_ends + chunk) - context).to(tl.int64) * WIDTH
    positions, columns = first + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_W)
    slots = page_slots(block_tables + chunk * max_pages, positions, context, PAGE_SIZE)
    has = (positions < context)[:, None] & (columns < WIDTH)[None, :]
    values = tl.load(pool + slots[:, None] * WIDTH + columns[None, :], mask=has, other=0.0)
    values = from_float8(values, rows.dtype.element_ty)
    tl.store(rows + target + positions[:, None] * WIDTH + columns[None, :], values, mask=has)


@triton.jit
def _load(pointers, is_seen, columns, IS_MASKED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """[N, BLOCK], rows of which only the last tile's may be missing."""
    if not IS_MASKED and WIDTH == BLOCK:
        return tl.load(pointers)
    return tl.load(pointers, mask=is_seen[:, None] & (columns < WIDTH)[None, :], other=0.0)


@triton.jit
def _attend_block(
    q_own, q_rope, keys_values, key_ropes, top, total, acc, start, seen, last_seen, scale,
    IS_MASKED: tl.constexpr, KV_STRIDE: tl.constexpr, ROPE_STRIDE: tl.constexpr,
    NOPE: tl.constexpr, ROPE: tl.constexpr, VALUE: tl.constexpr,
    BLOCK_NOPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """Take BLOCK_N more positions into the running softmax of a tile of rows."""
    nopes, ropes, dims = tl.arange(0, BLOCK_NOPE), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_V)
    positions = start + tl.arange(0, BLOCK_N)
    is_seen = positions < seen
    at, at_rope = keys_values + positions[:, None] * KV_STRIDE, key_ropes + positions[:, None] * ROPE_STRIDE
    k = _load(at + nopes[None, :], is_seen, nopes, IS_MASKED, NOPE, BLOCK_NOPE)
    k_rope = _load(at_rope + ropes[None, :], is_seen, ropes, IS_MASKED, ROPE, BLOCK_P)
    scores = tl.dot(q_own, tl.trans(k), input_precision="ieee")
    scores = tl.dot(q_rope, tl.trans(k_rope), scores, input_precision="ieee")
    if IS_MASKED:
        scores = tl.where(positions[None, :] <= last_seen[:, None], scores, float("-inf"))
    highest = tl.maximum(top, tl.max(scores, 1) * scale)
    fade = tl.exp2(top - highest)
    p = tl.exp2(scores * scale - highest[:, None])
    v = _load(at + NOPE + dims[None, :], is_seen, dims, IS_MASKED, VALUE, BLOCK_V)
    acc = add_weighted(acc * fade[:, None], p, v, TERMS)
    return highest, total * fade + tl.sum(p, 1), acc


@triton.jit(
    do_not_specialize=["num_chunks", "num_rows"],
    do_not_specialize_on_alignment=["query_starts", "context_lengths", "key_ends"],
)
def prefill_expanded(
    q, keys_values, latent_rows, cos, sin, out, query_starts, context_lengths, key_ends, scale, num_chunks, num_rows,
    HEADS: tl.constexpr, RANK: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr, VALUE: tl.constexpr,
    BLOCK_NOPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """A tile of query rows of one chunk, for one head. Queries are rotated here.

    q            [Q, H, Dn + Dr]
    keys_values  [positions, H, Dn + Dv]: chunk s has the rows before key_ends[s]
    latent_rows  [positions, R + Dr]: their rotated shared keys are its last part
    out          [Q, H, Dv]
    """
    KV_STRIDE: tl.constexpr = HEADS * (NOPE + VALUE)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)  # late rows see most and start first
    head = tl.program_id(0)
    chunk, first_row, end, context = find_tile(query_starts, context_lengths, num_chunks, num_rows, tile, BLOCK_M)
    if first_row >= end:
        return
    first_key = (tl.load(key_ends + chunk, mask=chunk < num_chunks, other=0) - context).to(tl.int64)
    keys_values += first_key * KV_STRIDE + head * (NOPE + VALUE)
    key_ropes = latent_rows + first_key * (RANK + ROPE) + RANK

    rows = first_row + tl.arange(0, BLOCK_M)
    is_row, last_seen = rows < end, context - end + rows
    nopes, dims = tl.arange(0, BLOCK_NOPE), tl.arange(0, BLOCK_V)
    source = q + (rows * HEADS + head).to(tl.int64) * (NOPE + ROPE)
    q_own = tl.load(source[:, None] + nopes[None, :], mask=is_row[:, None] & (nopes < NOPE)[None, :], other=0.0)
    q_rope = rotate_pairs(source + NOPE, last_seen, is_row & (last_seen >= 0), cos, sin, ROPE, BLOCK_P)

    seen, seen_by_all = seen_positions(context, first_row, end, BLOCK_M, BLOCK_N)
    top, total = tl.full([BLOCK_M], FLOOR, tl.float32), tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for start in range(0, tl.minimum(seen_by_all, seen), BLOCK_N):
        top, total, acc = _attend_block(
            q_own, q_rope, keys_values, key_ropes, top, total, acc, start, seen, last_seen, scale,
            False, KV_STRIDE, RANK + ROPE, NOPE, ROPE, VALUE, BLOCK_NOPE, BLOCK_P, BLOCK_V, BLOCK_N, TERMS,
        )  # fmt: skip
    for start in range(seen_by_all, seen, BLOCK_N):
        top, total, acc = _attend_block(
            q_own, q_rope, keys_values, key_ropes, top, total, acc, start, seen, last_seen, scale,
            True, KV_STRIDE, RANK + ROPE, NOPE, ROPE, VALUE, BLOCK_NOPE, BLOCK_P, BLOCK_V, BLOCK_N, TERMS,
        )  # fmt: skip
    result = acc / tl.where(total > 0, total, 1.0)[:, None]
    target = out + (rows * HEADS + head).to(tl.int64)[:, None] * VALUE + dims[None, :]
    tl.store(target, to_dtype(result, out.dtype.element_ty), mask=is_row[:, None] & (dims < VALUE)[None, :])
