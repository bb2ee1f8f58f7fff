"""Decoding where each query head has keys and values of its own and these are float8 (`Backend.attend_heads`).

With one query a head there is nothing for tensor cores to share, and float8 would have to pass through registers twice
on its way to them. Here it is widened where it arrives: each of a tile's positions has a running softmax of its own,
so that nothing passes between threads but the sum over a key's numbers; they are brought together at the end.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vl2.ops.attention.kernel_common import FLOOR, add_splits, is_last, leads, load_rows, page_slots, split_size
from vl2.ops.chain import wait_for_last
from vl2.ops.saturate_kernel import to_dtype


@triton.jit(
    do_not_specialize=["num_chunks", "max_pages", "num_splits"],
    do_not_specialize_on_alignment=["query_starts", "block_tables", "context_lengths"],
)
def decode_single(
    q, keys, values, out, query_starts, block_tables, context_lengths, parts, stats, counters, scale, num_chunks,
    max_pages, num_splits,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE_SIZE: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr, STAGES: tl.constexpr, LAST_ADDS: tl.constexpr, IS_MIXED: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """One split of one row and head; splits are added up as in `decode_heads`."""
    wait_for_last(CHAINED)
    head, split, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(context_lengths + row, mask=row < num_chunks, other=0)
    if IS_MIXED:
        begin, end = tl.load(query_starts + row), tl.load(query_starts + row + 1)
        if not leads(row, begin, end, context):
            return
    size = split_size(context, num_splits, SPLIT, BLOCK_N)
    first = split * size
    if (first >= context) & (split > 0):
        return
    columns, ahead, row_head = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N), (row * HEADS + head).to(tl.int64)
    own = tl.load(q + row_head * DIM + columns, mask=columns < DIM, other=0.0).to(tl.float32) * scale

    top, total = tl.full([BLOCK_N], FLOOR, tl.float32), tl.zeros([BLOCK_N], tl.float32)
    acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    block_table = block_tables + row * max_pages
    slots = page_slots(block_table, first + ahead, context, PAGE_SIZE)
    for start in tl.range(first, tl.minimum(first + size, context), BLOCK_N, num_stages=STAGES):
        is_seen = start + ahead < context
        offsets = slots * (HEADS * DIM) + head * DIM
        k = load_rows(keys, offsets, columns, is_seen, q.dtype.element_ty, DIM, BLOCK_D).to(tl.float32)
        v = load_rows(values, offsets, columns, is_seen, q.dtype.element_ty, DIM, BLOCK_D).to(tl.float32)
        slots = page_slots(block_table, start + BLOCK_N + ahead, context, PAGE_SIZE)
        scores = tl.where(is_seen, tl.sum(k * own[None, :], 1), float("-inf"))
        highest = tl.maximum(top, scores)
        fade, p = tl.exp2(top - highest), tl.exp2(scores - highest)
        acc = acc * fade[:, None] + v * p[:, None]
        total = total * fade + p
        top = highest

    highest = tl.max(top, 0)
    fade = tl.exp2(top - highest)
    together, all_total = tl.sum(acc * fade[:, None], 0), tl.sum(total * fade, 0)
    used = tl.cdiv(context, size)
    if used <= 1:
        result = together / tl.where(all_total > 0, all_total, 1.0)
        tl.store(out + row_head * DIM + columns, to_dtype(result, out.dtype.element_ty), mask=columns < DIM)
        return
    part = row_head * num_splits + split
    tl.store(parts + part * DIM + columns, together, mask=columns < DIM)
    tl.store(stats + part * 2, highest)
    tl.store(stats + part * 2 + 1, all_total)
    if LAST_ADDS:  # noqa: SIM102 - the compiler's `and` does not stop at False
        if is_last(counters + row * HEADS + head, used):
            of = row_head * num_splits
            result = add_splits(parts + of * DIM, stats + of * 2, used, columns, DIM, BLOCK_D)
            tl.store(out + row_head * DIM + columns, to_dtype(result, out.dtype.element_ty), mask=columns < DIM)
