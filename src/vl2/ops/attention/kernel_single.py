"""Decoding where each query head has keys and values of its own and these are float8 (`Backend.attend_heads`).

With one query a head there is nothing for tensor cores to share, and float8 would have to pass through registers twice
on its way to them. Here it is widened where it arrives: four numbers of the cache are one word, which two instructions
make into float16 (exact) and four into float32. A lane of threads has several positions a turn and a running softmax of
its own, which is rescaled once for all of them; nothing passes between lanes until they are brought together at the
end. What one turn asks for is used in the next, so memory never waits for arithmetic.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vl2.ops.attention.kernel_common import FLOOR, add_splits, is_last, leads, split_size
from vl2.ops.chain import wait_for_last
from vl2.ops.float8.kernel_common import four_from_float8
from vl2.ops.saturate_kernel import to_dtype


@triton.jit
def _load(
    keys, values, block_table, start, end, at, lane, is_word, PAGE_SIZE: tl.constexpr, ROW_WORDS: tl.constexpr,
    ROWS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Of each step from position `start` on, all of whose positions are of one page: words [ROWS, W] of keys and of
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
def decode_single(
    q, keys, values, out, query_starts, block_tables, context_lengths, parts, stats, counters, scale, num_chunks,
    max_pages, num_splits,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_W: tl.constexpr, PAGE_SIZE: tl.constexpr, SPLIT: tl.constexpr,
    ROWS: tl.constexpr, STEPS: tl.constexpr, LAST_ADDS: tl.constexpr, IS_MIXED: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One split of one row and head; splits are added up as in `decode_heads`.

    keys, values  [pages, page size, H, D / 4] int32: four float8 each

    A turn has STEPS steps of ROWS positions, and a lane has one position of each step.
    """
    TURN: tl.constexpr = ROWS * STEPS
    WORDS: tl.constexpr = DIM // 4
    wait_for_last(CHAINED)
    head, split, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(context_lengths + row, mask=row < num_chunks, other=0)
    if IS_MIXED:
        row_begin, row_end = tl.load(query_starts + row), tl.load(query_starts + row + 1)
        if not leads(row, row_begin, row_end, context):
            return
    size = split_size(context, num_splits, SPLIT, TURN)
    first = split * size
    if (first >= context) & (split > 0):
        return
    block_table, end = block_tables + row * max_pages, tl.minimum(first + size, context)
    lane, words = tl.arange(0, ROWS), tl.arange(0, BLOCK_W)
    is_word, row_head = (words < WORDS)[None, :], row.to(tl.int64) * HEADS + head
    at = (lane * HEADS + head)[:, None] * WORDS + words[None, :]
    own_at = q + row_head * DIM + 4 * words[None, :]
    own_0 = tl.load(own_at, mask=is_word, other=0.0).to(tl.float32) * scale
    own_1 = tl.load(own_at + 1, mask=is_word, other=0.0).to(tl.float32) * scale
    own_2 = tl.load(own_at + 2, mask=is_word, other=0.0).to(tl.float32) * scale
    own_3 = tl.load(own_at + 3, mask=is_word, other=0.0).to(tl.float32) * scale

    nothing = tl.zeros([ROWS, BLOCK_W], tl.float32)
    acc = (nothing, nothing, nothing, nothing)
    top, total = tl.full([ROWS], FLOOR, tl.float32), tl.zeros([ROWS], tl.float32)
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

    highest = tl.max(top, 0)
    fade = tl.exp2(top - highest)
    joined = tl.interleave(tl.interleave(acc[0], acc[2]), tl.interleave(acc[1], acc[3]))
    together, all_total = tl.sum(joined * fade[:, None], 0), tl.sum(total * fade, 0)
    columns = tl.arange(0, 4 * BLOCK_W)
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
            result = add_splits(parts + of * DIM, stats + of * 2, used, columns, DIM, 4 * BLOCK_W)
            tl.store(out + row_head * DIM + columns, to_dtype(result, out.dtype.element_ty), mask=columns < DIM)
