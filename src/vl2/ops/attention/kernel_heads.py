"""Multi-head attention over pages (`Backend.attend_heads`): decode and prefill."""

from __future__ import annotations

import triton
import triton.language as tl

from vl2.ops.attention.kernel_common import (
    FLOOR,
    add_splits,
    find_tile,
    is_last,
    leads,
    load_rows,
    page_slots,
    seen_positions,
    split_size,
)
from vl2.ops.chain import wait_for_last
from vl2.ops.saturate_kernel import to_dtype


@triton.jit
def add_weighted(acc, p, v, TERMS: tl.constexpr):
    """acc + p @ v. p is float32; with two terms what its rounding to v's dtype loses is added by a second product."""
    rounded = p.to(v.dtype)
    acc = tl.dot(rounded, v, acc, input_precision="ieee")
    if TERMS == 2:
        acc = tl.dot((p - rounded.to(tl.float32)).to(v.dtype), v, acc, input_precision="ieee")
    return acc


@triton.jit
def add_weighted_t(acc, p, v, TERMS: tl.constexpr):
    """The same of transposed operands: acc [D, G] + vᵀ [D, N] @ p [N, G]."""
    rounded = p.to(v.dtype)
    acc = tl.dot(tl.trans(v), rounded, acc, input_precision="ieee")
    if TERMS == 2:
        acc = tl.dot(tl.trans(v), (p - rounded.to(tl.float32)).to(v.dtype), acc, input_precision="ieee")
    return acc


@triton.jit(
    do_not_specialize=["num_chunks", "max_pages", "num_splits"],
    do_not_specialize_on_alignment=["query_starts", "block_tables", "context_lengths"],
)
def decode_heads(
    q, keys, values, out, query_starts, block_tables, context_lengths, parts, stats, counters, scale, num_chunks,
    max_pages, num_splits,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr,
    PAGE_SIZE: tl.constexpr, SPLIT: tl.constexpr, BLOCK_N: tl.constexpr, TERMS: tl.constexpr,
    LAST_ADDS: tl.constexpr, IS_MIXED: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One split of one row for the query heads of one KV head; zeros for a row of no chunk. In a mixed step only the
    leading chunks of one row are done.

    Everything is transposed, positions × heads: the many positions are then the rows of the tensor core's product and
    the few heads its columns, and keys and values go to it from shared memory without passing through registers.

    A row of one split is done here. Of several, each leaves its sums in `parts`, and the one that comes last adds them
    up in order (LAST_ADDS; else `combine_splits` does).
    """
    wait_for_last(CHAINED)
    kv_head, split, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(context_lengths + row, mask=row < num_chunks, other=0)
    if IS_MIXED:
        begin, end = tl.load(query_starts + row), tl.load(query_starts + row + 1)
        if not leads(row, begin, end, context):
            return
    size = split_size(context, num_splits, SPLIT, BLOCK_N)
    first = split * size
    if (first >= context) & (split > 0):
        return
    GROUP: tl.constexpr = HEADS // KV_HEADS
    columns, group = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_G)
    heads = row * HEADS + kv_head * GROUP + group
    in_q = (columns < DIM)[:, None] & (group < GROUP)[None, :]
    q_t = tl.load(q + heads[None, :] * DIM + columns[:, None], mask=in_q, other=0.0)

    top, total = tl.full([BLOCK_G], FLOOR, tl.float32), tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_D, BLOCK_G], tl.float32)
    block_table, ahead = block_tables + row * max_pages, tl.arange(0, BLOCK_N)
    slots = page_slots(block_table, first + ahead, context, PAGE_SIZE)
    for start in range(first, tl.minimum(first + size, context), BLOCK_N):
        is_seen = start + ahead < context
        offsets = slots * (KV_HEADS * DIM) + kv_head * DIM
        k = load_rows(keys, offsets, columns, is_seen, q_t.dtype, DIM, BLOCK_D)
        v = load_rows(values, offsets, columns, is_seen, q_t.dtype, DIM, BLOCK_D)
        slots = page_slots(block_table, start + BLOCK_N + ahead, context, PAGE_SIZE)
        scores = tl.dot(k, q_t, input_precision="ieee")
        scores = tl.where(is_seen[:, None], scores, float("-inf"))
        highest = tl.maximum(top, tl.max(scores, 0) * scale)
        fade = tl.exp2(top - highest)
        p = tl.exp2(scores * scale - highest[None, :])
        acc = add_weighted_t(acc * fade[None, :], p, v, TERMS)
        total = total * fade + tl.sum(p, 0)
        top = highest

    used = tl.cdiv(context, size)
    if used <= 1:
        result = acc / tl.where(total > 0, total, 1.0)[None, :]
        tl.store(out + heads[None, :] * DIM + columns[:, None], to_dtype(result, out.dtype.element_ty), mask=in_q)
        return
    parts_of = heads.to(tl.int64) * num_splits + split
    tl.store(parts + parts_of[None, :] * DIM + columns[:, None], acc, mask=in_q)
    tl.store(stats + parts_of * 2, top, mask=group < GROUP)
    tl.store(stats + parts_of * 2 + 1, total, mask=group < GROUP)
    if LAST_ADDS:  # noqa: SIM102 - the compiler's `and` does not stop at False
        if is_last(counters + row * KV_HEADS + kv_head, used):
            for idx in range(GROUP):
                row_head = (row * HEADS + kv_head * GROUP + idx).to(tl.int64)
                of = row_head * num_splits
                result = add_splits(parts + of * DIM, stats + of * 2, used, columns, DIM, BLOCK_D)
                result = to_dtype(result, out.dtype.element_ty)
                tl.store(out + row_head * DIM + columns, result, mask=columns < DIM)


@triton.jit
def _attend_block(
    q, keys, values, block_table, slots, top, total, acc, start, seen, last_seen, kv_head, scale, columns,
    IS_MASKED: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """Take BLOCK_N more positions into the running softmax of a tile of rows."""
    positions = start + tl.arange(0, BLOCK_N)
    is_seen = positions < seen
    offsets = slots * (KV_HEADS * DIM) + kv_head * DIM
    k = load_rows(keys, offsets, columns, is_seen, q.dtype, DIM, BLOCK_D, IS_MASKED)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if IS_MASKED:
        visible = (positions[None, :] <= last_seen[:, None]) & is_seen[None, :]
        scores = tl.where(visible, scores, float("-inf"))
    highest = tl.maximum(top, tl.max(scores, 1) * scale)
    fade = tl.exp2(top - highest)
    p = tl.exp2(scores * scale - highest[:, None])
    v = load_rows(values, offsets, columns, is_seen, q.dtype, DIM, BLOCK_D, IS_MASKED)
    slots = page_slots(block_table, positions + BLOCK_N, seen, PAGE_SIZE)
    acc = add_weighted(acc * fade[:, None], p, v, TERMS)
    return slots, highest, total * fade + tl.sum(p, 1), acc


@triton.jit(
    do_not_specialize=["num_chunks", "num_rows", "max_pages"],
    do_not_specialize_on_alignment=["query_starts", "block_tables", "context_lengths"],
)
def prefill_heads(
    q, keys, values, out, block_tables, query_starts, context_lengths, scale, num_chunks, num_rows, max_pages,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TERMS: tl.constexpr,
    IS_MIXED: tl.constexpr,
):  # fmt: skip
    """A tile of query rows of one chunk, for the query heads of one KV head: tile row m is query row m // group. In a
    mixed step `decode_heads` does the leading chunks of one row.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # late rows see most and start first
    kv_head = tl.program_id(1)
    chunk, first_row, end, context = find_tile(query_starts, context_lengths, num_chunks, num_rows, tile, BLOCK_Q)
    if first_row >= end:
        return
    if IS_MIXED:  # noqa: SIM102 - the compiler's `and` does not stop at False
        if leads(chunk, first_row, end, context):
            return

    m, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    rows = first_row + m // GROUP
    is_row = (m // GROUP < BLOCK_Q) & (rows < end)
    offsets = (rows * HEADS + kv_head * GROUP + m % GROUP).to(tl.int64) * DIM
    in_tile = is_row[:, None] & (columns < DIM)[None, :]
    own = tl.load(q + offsets[:, None] + columns[None, :], mask=in_tile, other=0.0)

    seen, seen_by_all = seen_positions(context, first_row, end, BLOCK_Q, BLOCK_N)
    last_seen = context - end + rows
    block_table = block_tables + tl.minimum(chunk, num_chunks - 1) * max_pages
    top, total = tl.full([BLOCK_M], FLOOR, tl.float32), tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    slots = page_slots(block_table, tl.arange(0, BLOCK_N), seen, PAGE_SIZE)
    for start in range(0, tl.minimum(seen_by_all, seen), BLOCK_N):
        slots, top, total, acc = _attend_block(
            own, keys, values, block_table, slots, top, total, acc, start, seen, last_seen, kv_head, scale, columns,
            False, KV_HEADS, DIM, BLOCK_D, PAGE_SIZE, BLOCK_N, TERMS,
        )  # fmt: skip
    for start in range(seen_by_all, seen, BLOCK_N):
        slots, top, total, acc = _attend_block(
            own, keys, values, block_table, slots, top, total, acc, start, seen, last_seen, kv_head, scale, columns,
            True, KV_HEADS, DIM, BLOCK_D, PAGE_SIZE, BLOCK_N, TERMS,
        )  # fmt: skip
    result = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + offsets[:, None] + columns[None, :], to_dtype(result, out.dtype.element_ty), mask=in_tile)
