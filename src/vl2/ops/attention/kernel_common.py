"""What the attention kernels share: pages, chunks, the running softmax, and the sum over splits.

Scores are kept in units of log2 (the scale has log2(e) in it), so that exp2 is enough.
"""

from __future__ import annotations

import triton
import triton.language as tl

FLOOR = tl.constexpr(-1e30)
"""Where a running maximum starts: less than any score, but finite, so that differences are never NaN."""


@triton.jit
def page_slots(block_table, positions, is_seen, PAGE_SIZE: tl.constexpr):
    """Rows of the pool [N] int64 that hold these positions; pools have more than 2³¹ elements."""
    pages = tl.load(block_table + positions // PAGE_SIZE, mask=is_seen, other=0)
    return pages.to(tl.int64) * PAGE_SIZE + positions % PAGE_SIZE


@triton.jit
def load_rows(pool, offsets, columns, is_seen, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """[N, BLOCK]: `WIDTH` numbers at each offset. The one place where the cache is read (a quantised one, later)."""
    pointers = pool + offsets[:, None] + columns[None, :]
    if WIDTH == BLOCK:
        return tl.load(pointers, mask=is_seen[:, None], other=0.0)
    return tl.load(pointers, mask=is_seen[:, None] & (columns < WIDTH)[None, :], other=0.0)


@triton.jit
def find_chunk(query_starts, num_chunks, tile, BLOCK_Q: tl.constexpr):
    """The chunk whose rows tile number `tile` has; `num_chunks`: rows after the last chunk.

    Chunk s owns the tiles from query_starts[s] // BLOCK_Q + s on: never fewer than it needs, and the host knows how
    many there are in all without knowing the chunks.
    """
    LANES: tl.constexpr = 128
    count = 0
    for base in range(0, num_chunks + 1, LANES):
        chunks = base + tl.arange(0, LANES)
        exists = chunks <= num_chunks
        first_tiles = tl.load(query_starts + chunks, mask=exists, other=0) // BLOCK_Q + chunks
        count += tl.sum((exists & (first_tiles <= tile)).to(tl.int32), 0)
    return count - 1


@triton.jit
def to_out(x, dtype: tl.constexpr):
    """Cast, saturating where the target is float16."""
    if dtype == tl.float16:
        x = tl.clamp(x, -65504.0, 65504.0)
    return x.to(dtype)


@triton.jit
def fold(top, total, acc, part_top, part_total, part):
    """Add the softmax sums of more positions [D] to those of earlier ones. Written with fma: its bits are fixed."""
    highest = tl.maximum(top, part_top)
    fade, part_fade = tl.exp2(top - highest), tl.exp2(part_top - highest)
    total = tl.fma(total, fade, part_total * part_fade)
    return highest, total, tl.fma(acc, tl.zeros_like(acc) + fade, part * part_fade)


@triton.jit(do_not_specialize=["num_chunks", "max_splits"])
def combine_splits(
    parts, stats, out, context_lengths, num_chunks, max_splits,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Add up the splits of one decoding row and head, always in order; zeros for a row of no chunk.

    parts  [rows, H, splits, D] float32 sums; stats [rows, H, splits, 2] float32: maximum score, sum of exponentials
    """
    UNROLL: tl.constexpr = 4  # loads of so many splits are in flight together
    head, row = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, BLOCK_D)
    context = tl.load(context_lengths + row, mask=row < num_chunks, other=0)
    num_splits = tl.cdiv(context, SPLIT)
    first = (row * HEADS + head).to(tl.int64) * max_splits
    top, total, acc = FLOOR + 0.0, 0.0, tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, num_splits, UNROLL):
        for i in tl.static_range(UNROLL):
            exists = start + i < num_splits
            idx = first + start + i
            part_top = tl.load(stats + idx * 2, mask=exists, other=FLOOR)
            part_total = tl.load(stats + idx * 2 + 1, mask=exists, other=0.0)
            part = tl.load(parts + idx * DIM + columns, mask=exists & (columns < DIM), other=0.0)
            top, total, acc = fold(top, total, acc, part_top, part_total, part)
    result = acc / tl.where(total > 0, total, 1.0)
    pointers = out + (row * HEADS + head).to(tl.int64) * DIM + columns
    tl.store(pointers, to_out(result, out.dtype.element_ty), mask=columns < DIM)
