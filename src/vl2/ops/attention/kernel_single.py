"""Decoding where each query head has keys and values of its own and these are float8 (`Backend.attend_heads`).

With one query a head there is nothing for tensor cores to share, and float8 would have to pass through registers twice
on its way to them. Here it is widened where it arrives: each of a tile's positions has a running softmax of its own,
so that nothing passes between threads but the sum over a key's numbers; they are brought together at the end.

`decode_lanes` does the same in other turns (not measured yet). What one asks for is used in the next, so memory never
waits for arithmetic, and a lane of threads has several positions a turn: its running softmax is rescaled once for all
of them. Four numbers of the cache are one word, which two instructions make into float16 (exact) and four into float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vl2.ops.attention.kernel_common import FLOOR, add_splits, is_last, leads, load_rows, page_slots, split_size
from vl2.ops.chain import fetch, wait_for_last
from vl2.ops.float8.kernel_common import four_from_float8
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


@triton.jit
def _load(
    keys, values, block_table, start, end, at, lane, is_word, PAGE_SIZE: tl.constexpr, ROW_WORDS: tl.constexpr,
    ROWS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Of each step from position `start` on, all of whose positions are of one page: words [LANES, W] of keys and of
    values, and which lanes have a position before `end`."""
    steps = ()
    for step in tl.static_range(STEPS):
        position = start + step * ROWS
        page = tl.load(block_table + position // PAGE_SIZE, mask=position < end, other=0)
        first = (page.to(tl.int64) * PAGE_SIZE + position % PAGE_SIZE) * ROW_WORDS
        is_seen = position + lane < end
        mask = is_seen[:, None] & is_word
        k = tl.load(keys + first + at, mask=mask, other=0)
        steps = steps + ((k, tl.load(values + first + at, mask=mask, other=0), is_seen),)  # noqa: RUF005 - as below
    return steps


@triton.jit(
    do_not_specialize=["num_chunks", "max_pages", "num_splits"],
    do_not_specialize_on_alignment=["query_starts", "block_tables", "context_lengths"],
)
def decode_lanes(
    q, keys, values, out, query_starts, block_tables, context_lengths, parts, stats, counters, scale, num_chunks,
    max_pages, num_splits,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK_W: tl.constexpr, PAGE_SIZE: tl.constexpr,
    SPLIT: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, LAST_ADDS: tl.constexpr, IS_MIXED: tl.constexpr,
    AHEAD: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One split of one row for GROUP heads, whose numbers lie side by side; splits are added up as in `decode_heads`.

    keys, values  [pages, page size, H, D / 4] int32: four float8 each

    A turn has STEPS steps of ROWS positions, and a lane has one head of one position of each step. The card fetches the
    first AHEAD positions of a split before the wait.
    """
    LANES: tl.constexpr = ROWS * GROUP
    TURN: tl.constexpr = ROWS * STEPS
    WORDS: tl.constexpr = DIM // 4
    if AHEAD == 0:
        wait_for_last(CHAINED)
    head_block, split, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(context_lengths + row, mask=row < num_chunks, other=0, cache_modifier=".cg")
    if IS_MIXED:
        row_begin = tl.load(query_starts + row, cache_modifier=".cg")
        row_end = tl.load(query_starts + row + 1, cache_modifier=".cg")
        if not leads(row, row_begin, row_end, context):
            return
    size = split_size(context, num_splits, SPLIT, TURN)
    first = split * size
    if (first >= context) & (split > 0):
        return
    block_table, end = block_tables + row * max_pages, tl.minimum(first + size, context)
    if AHEAD > 0 and CHAINED:
        ahead = first + tl.arange(0, AHEAD)
        rows = page_slots(block_table, ahead, end, PAGE_SIZE, True) * (HEADS * WORDS) + head_block * GROUP * WORDS
        fetch(keys + rows, ahead < end, GROUP * DIM)
        fetch(values + rows, ahead < end, GROUP * DIM)
    if AHEAD > 0:
        wait_for_last(CHAINED)
    lanes, words = tl.arange(0, LANES), tl.arange(0, BLOCK_W)
    lane, is_word = lanes // GROUP, (words < WORDS)[None, :]
    first_head = row.to(tl.int64) * HEADS + head_block * GROUP
    at = (lane * (HEADS * WORDS) + (head_block * GROUP + lanes % GROUP) * WORDS)[:, None] + words[None, :]
    own_at = q + (first_head + lanes % GROUP)[:, None] * DIM + 4 * words[None, :]
    own_0 = tl.load(own_at, mask=is_word, other=0.0).to(tl.float32) * scale
    own_1 = tl.load(own_at + 1, mask=is_word, other=0.0).to(tl.float32) * scale
    own_2 = tl.load(own_at + 2, mask=is_word, other=0.0).to(tl.float32) * scale
    own_3 = tl.load(own_at + 3, mask=is_word, other=0.0).to(tl.float32) * scale

    nothing = tl.zeros([LANES, BLOCK_W], tl.float32)
    acc = (nothing, nothing, nothing, nothing)
    top, total = tl.full([LANES], FLOOR, tl.float32), tl.zeros([LANES], tl.float32)
    turn = _load(keys, values, block_table, first, end, at, lane, is_word, PAGE_SIZE, HEADS * WORDS, ROWS, STEPS)
    for start in tl.range(first + TURN, end + TURN, TURN, num_stages=1):
        after = _load(keys, values, block_table, start, end, at, lane, is_word, PAGE_SIZE, HEADS * WORDS, ROWS, STEPS)
        scores, highest = (), top
        for step in tl.static_range(STEPS):
            k = four_from_float8(turn[step][0])
            score = tl.sum(k[0] * own_0 + k[1] * own_1 + k[2] * own_2 + k[3] * own_3, 1)
            score = tl.where(turn[step][2], score, float("-inf"))
            scores = scores + (score,)  # noqa: RUF005 - the compiler knows no unpacking
            highest = tl.maximum(highest, score)
        fade = tl.exp2(top - highest)
        total *= fade
        acc = (acc[0] * fade[:, None], acc[1] * fade[:, None], acc[2] * fade[:, None], acc[3] * fade[:, None])
        for step in tl.static_range(STEPS):
            p = tl.exp2(scores[step] - highest)
            v, share = four_from_float8(turn[step][1]), p[:, None]
            acc = (acc[0] + v[0] * share, acc[1] + v[1] * share, acc[2] + v[2] * share, acc[3] + v[3] * share)
            total += p
        top, turn = highest, after

    lane_top = tl.reshape(top, [ROWS, GROUP])
    highest = tl.max(lane_top, 0)
    fade = tl.exp2(lane_top - highest[None, :])
    joined = tl.interleave(tl.interleave(acc[0], acc[2]), tl.interleave(acc[1], acc[3]))
    together = tl.sum(tl.reshape(joined, [ROWS, GROUP, 4 * BLOCK_W]) * fade[:, :, None], 0)
    all_total = tl.sum(tl.reshape(total, [ROWS, GROUP]) * fade, 0)
    group, columns = tl.arange(0, GROUP), tl.arange(0, 4 * BLOCK_W)
    is_column = columns < DIM
    used = tl.cdiv(context, size)
    if used <= 1:
        result = to_dtype(together / tl.where(all_total > 0, all_total, 1.0)[:, None], out.dtype.element_ty)
        tl.store(out + (first_head + group)[:, None] * DIM + columns[None, :], result, mask=is_column[None, :])
        return
    part_of = (first_head + group) * num_splits + split
    tl.store(parts + part_of[:, None] * DIM + columns[None, :], together, mask=is_column[None, :])
    tl.store(stats + part_of * 2, highest)
    tl.store(stats + part_of * 2 + 1, all_total)
    if LAST_ADDS:  # noqa: SIM102 - the compiler's `and` does not stop at False
        if is_last(counters + row * tl.num_programs(0) + head_block, used):
            for idx in range(GROUP):
                of = (first_head + idx) * num_splits
                result = add_splits(parts + of * DIM, stats + of * 2, used, columns, DIM, 4 * BLOCK_W)
                result = to_dtype(result, out.dtype.element_ty)
                tl.store(out + (first_head + idx) * DIM + columns, result, mask=is_column)
