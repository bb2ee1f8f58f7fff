"""Attention on latent rows (`Backend.attend_latent`): decode and prefill. A row is loaded once, as key and as value.

Everything is transposed, positions × heads and then rank × heads: the tensor core multiplies the tile of rows where it
lies in shared memory, both times, and the accumulator [R, rows × heads] spreads over all warps.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vl2.ops.attention.kernel_common import (
    FLOOR,
    add_splits,
    find_tile,
    is_last,
    load_rows,
    page_slots,
    rotate_pairs,
    seen_positions,
    split_size,
)
from vl2.ops.attention.kernel_heads import add_weighted_t
from vl2.ops.chain import fetch, wait_for_last
from vl2.ops.saturate_kernel import to_dtype


@triton.jit
def _attend_block(
    q_latent, q_rope, pool, block_table, slots, top, total, acc, start, seen, last_seen, scale, ranks, ropes,
    IS_MASKED: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
    PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """Take BLOCK_N more positions into the running softmax of a tile's columns (rows × heads)."""
    positions = start + tl.arange(0, BLOCK_N)
    is_seen = positions < seen
    offsets = slots * (RANK + ROPE)
    slots = page_slots(block_table, positions + BLOCK_N, seen, PAGE_SIZE)
    latent = load_rows(pool, offsets, ranks, is_seen, q_latent.dtype, RANK, BLOCK_R, IS_MASKED)
    rope = load_rows(pool, offsets + RANK, ropes, is_seen, q_latent.dtype, ROPE, BLOCK_P, IS_MASKED)
    scores = tl.dot(rope, q_rope, input_precision="ieee")
    scores = tl.dot(latent, q_latent, scores, input_precision="ieee")
    if IS_MASKED:
        visible = (positions[:, None] <= last_seen[None, :]) & is_seen[:, None]
        scores = tl.where(visible, scores, float("-inf"))
    highest = tl.maximum(top, tl.max(scores, 0) * scale)
    fade = tl.exp2(top - highest)
    p = tl.exp2(scores * scale - highest[None, :])
    acc = add_weighted_t(acc * fade[None, :], p, latent, TERMS)
    return slots, highest, total * fade + tl.sum(p, 0), acc


@triton.jit
def _fetch_rows(pool, block_table, positions, end, WIDTH: tl.constexpr, PAGE_SIZE: tl.constexpr):
    NUM_BYTES: tl.constexpr = WIDTH * pool.dtype.element_ty.primitive_bitwidth // 8
    fetch(pool + page_slots(block_table, positions, end, PAGE_SIZE) * WIDTH, positions < end, NUM_BYTES)


@triton.jit(
    do_not_specialize=["num_chunks", "max_pages", "num_splits"],
    do_not_specialize_on_alignment=["block_tables", "context_lengths"],
)
def decode_latent(
    q_latent, q, row_stride, cos, sin, pool, out, block_tables, context_lengths, parts, stats, counters, scale,
    num_chunks, max_pages, num_splits,
    HEADS: tl.constexpr, RANK: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_H: tl.constexpr, PAGE_SIZE: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr, TERMS: tl.constexpr, LAST_ADDS: tl.constexpr, HAS_ADDER: tl.constexpr, STREAMS: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """One split of one row for BLOCK_H heads; splits are added up as in `decode_heads`, or HAS_ADDER: by
    `expand_splits`, which wants them all, one or many.

    q_latent  [Q, H, R]: queries in the latent space
    q         [Q, H, Dn + Dr], rows may be strided: as they were projected; their last part is rotated here

    The card fetches rows STREAMS positions before they are loaded, as with two stages nothing is asked for during the
    products.
    """
    wait_for_last(CHAINED)
    head_block, split, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(context_lengths + row, mask=row < num_chunks, other=0)
    size = split_size(context, num_splits, SPLIT, BLOCK_N)
    first = split * size
    if (first >= context) & (split > 0):
        return
    ranks, ropes = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    heads = head_block * BLOCK_H + tl.arange(0, BLOCK_H)
    is_head, rows = heads < HEADS, row * HEADS + heads
    in_latent = (ranks < RANK)[:, None] & is_head[None, :]
    last_seen = tl.zeros([BLOCK_H], tl.int32) + context - 1
    own = tl.load(q_latent + rows[None, :] * RANK + ranks[:, None], mask=in_latent, other=0.0)
    is_turned = is_head & (last_seen >= 0)
    source = q + row * row_stride + heads * (NOPE + ROPE) + NOPE
    own_rope = tl.trans(rotate_pairs(source, last_seen, is_turned, cos, sin, ROPE, BLOCK_P))

    top, total = tl.full([BLOCK_H], FLOOR, tl.float32), tl.zeros([BLOCK_H], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_H], tl.float32)
    block_table = block_tables + row * max_pages
    slots = page_slots(block_table, first + tl.arange(0, BLOCK_N), context, PAGE_SIZE)
    end = tl.minimum(first + size, context)
    for start in range(first, end, BLOCK_N):
        if STREAMS > 0 and CHAINED:
            _fetch_rows(pool, block_table, start + STREAMS + tl.arange(0, BLOCK_N), end, RANK + ROPE, PAGE_SIZE)
        slots, top, total, acc = _attend_block(
            own, own_rope, pool, block_table, slots, top, total, acc, start, context, last_seen, scale,
            ranks, ropes, True, RANK, ROPE, BLOCK_R, BLOCK_P, PAGE_SIZE, BLOCK_N, TERMS,
        )  # fmt: skip

    used = tl.cdiv(context, size)
    if not HAS_ADDER:  # noqa: SIM102 - as below
        if used <= 1:
            result = acc / tl.where(total > 0, total, 1.0)[None, :]
            tl.store(
                out + rows[None, :] * RANK + ranks[:, None], to_dtype(result, out.dtype.element_ty), mask=in_latent
            )
            return
    parts_of = rows.to(tl.int64) * num_splits + split
    tl.store(parts + parts_of[None, :] * RANK + ranks[:, None], acc, mask=in_latent)
    tl.store(stats + parts_of * 2, top, mask=is_head)
    tl.store(stats + parts_of * 2 + 1, total, mask=is_head)
    if LAST_ADDS:  # noqa: SIM102 - the compiler's `and` does not stop at False
        if is_last(counters + row * tl.num_programs(0) + head_block, used):
            for idx in range(tl.minimum(BLOCK_H, HEADS - head_block * BLOCK_H)):
                row_head = (row * HEADS + head_block * BLOCK_H + idx).to(tl.int64)
                of = row_head * num_splits
                result = add_splits(parts + of * RANK, stats + of * 2, used, ranks, RANK, BLOCK_R)
                result = to_dtype(result, out.dtype.element_ty)
                tl.store(out + row_head * RANK + ranks, result, mask=ranks < RANK)


@triton.jit(
    do_not_specialize=["num_chunks", "num_rows", "max_pages"],
    do_not_specialize_on_alignment=["query_starts", "block_tables", "context_lengths"],
)
def prefill_latent(
    q_latent, q, cos, sin, pool, out, block_tables, query_starts, context_lengths, scale, num_chunks, num_rows,
    max_pages,
    HEADS: tl.constexpr, RANK: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PAGE_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """A tile of query rows of one chunk with all heads: its column m is head m % H of query row m // H."""
    BLOCK_Q: tl.constexpr = BLOCK_M // HEADS
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # late rows see most and start first
    chunk, first_row, end, context = find_tile(query_starts, context_lengths, num_chunks, num_rows, tile, BLOCK_Q)
    if first_row >= end:
        return

    m, ranks, ropes = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    rows = first_row + m // HEADS
    is_row = (m // HEADS < BLOCK_Q) & (rows < end)
    row_heads = (rows * HEADS + m % HEADS).to(tl.int64)
    in_latent = (ranks < RANK)[:, None] & is_row[None, :]
    last_seen = context - end + rows
    own = tl.load(q_latent + row_heads[None, :] * RANK + ranks[:, None], mask=in_latent, other=0.0)
    is_turned = is_row & (last_seen >= 0)
    source = q + row_heads * (NOPE + ROPE) + NOPE
    own_rope = tl.trans(rotate_pairs(source, last_seen, is_turned, cos, sin, ROPE, BLOCK_P))

    seen, seen_by_all = seen_positions(context, first_row, end, BLOCK_Q, BLOCK_N)
    block_table = block_tables + tl.minimum(chunk, num_chunks - 1) * max_pages
    top, total = tl.full([BLOCK_M], FLOOR, tl.float32), tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_M], tl.float32)
    slots = page_slots(block_table, tl.arange(0, BLOCK_N), seen, PAGE_SIZE)
    for start in range(0, tl.minimum(seen_by_all, seen), BLOCK_N):
        slots, top, total, acc = _attend_block(
            own, own_rope, pool, block_table, slots, top, total, acc, start, seen, last_seen, scale, ranks, ropes,
            False, RANK, ROPE, BLOCK_R, BLOCK_P, PAGE_SIZE, BLOCK_N, TERMS,
        )  # fmt: skip
    for start in range(seen_by_all, seen, BLOCK_N):
        slots, top, total, acc = _attend_block(
            own, own_rope, pool, block_table, slots, top, total, acc, start, seen, last_seen, scale, ranks, ropes,
            True, RANK, ROPE, BLOCK_R, BLOCK_P, PAGE_SIZE, BLOCK_N, TERMS,
        )  # fmt: skip
    result = acc / tl.where(total > 0, total, 1.0)[None, :]
    pointers = out + row_heads[None, :] * RANK + ranks[:, None]
    tl.store(pointers, to_dtype(result, out.dtype.element_ty), mask=in_latent)


@triton.jit(do_not_specialize=["num_chunks", "num_splits"], do_not_specialize_on_alignment=["context_lengths"])
def expand_splits(
    parts, stats, values, out, context_lengths, num_chunks, num_splits, head_stride, value_stride,
    HEADS: tl.constexpr, RANK: tl.constexpr, DIM: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_N: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Add up the splits of a row and head and take the result out of the latent space: BLOCK_D of its numbers.

    values  [H, Dv, R]
    out     [Q, H, Dv]
    """
    head, row = tl.program_id(1), tl.program_id(2)
    dims, ranks = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_R)
    pointers = values + head * head_stride + dims[:, None] * value_stride + ranks[None, :]
    value = tl.load(pointers, mask=(dims < DIM)[:, None] & (ranks < RANK)[None, :], other=0.0)
    context = tl.load(context_lengths + row, mask=row < num_chunks, other=0, cache_modifier=".cg")
    wait_for_last(CHAINED)  # only weights and contexts are there before
    used = tl.maximum(tl.cdiv(context, split_size(context, num_splits, SPLIT, BLOCK_N)), 1)
    row_head = (row * HEADS + head).to(tl.int64)
    first = row_head * num_splits
    latent = add_splits(parts + first * RANK, stats + first * 2, used, ranks, RANK, BLOCK_R)
    latent = to_dtype(latent, value.dtype).to(tl.float32)
    result = tl.sum(value.to(tl.float32) * latent[None, :], 1)
    tl.store(out + row_head * DIM + dims, to_dtype(result, out.dtype.element_ty), mask=dims < DIM)
