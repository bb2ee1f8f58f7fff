"""What the attention kernels share: pages, chunks, the running softmax, and the sum over splits.

Scores are kept in units of log2 (the scale has log2(e) in it), so that exp2 is enough.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vl2.ops.chain import wait_for_last
from vl2.ops.float8.kernel_common import from_float8
from vl2.ops.saturate_kernel import to_dtype

FLOOR = tl.constexpr(-1e30)
"""Where a running maximum starts: less than any score, but finite, so that differences are never NaN."""


@triton.jit
def page_slots(block_table, positions, seen, PAGE_SIZE: tl.constexpr):
    """Rows of the pool [N] int64 that hold these positions; pools have more than 2³¹ elements.

    Loops look them up one block ahead: only then does the compiler load a block's rows during the work on others.
    """
    pages = tl.load(block_table + positions // PAGE_SIZE, mask=positions < seen, other=0)
    return pages.to(tl.int64) * PAGE_SIZE + positions % PAGE_SIZE


@triton.jit
def load_rows(
    pool, offsets, columns, is_seen, dtype: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    IS_MASKED: tl.constexpr = True,
):  # fmt: skip
    """[N, BLOCK] dtype: `WIDTH` numbers at each offset. The one place where the cache is read, which may be float8."""
    pointers = pool + offsets[:, None] + columns[None, :]
    if not IS_MASKED and WIDTH == BLOCK:
        rows = tl.load(pointers)
    elif WIDTH == BLOCK:
        rows = tl.load(pointers, mask=is_seen[:, None], other=0.0)
    else:
        rows = tl.load(pointers, mask=is_seen[:, None] & (columns < WIDTH)[None, :], other=0.0)
    return from_float8(rows, dtype)


@triton.jit
def find_chunk(query_starts, num_chunks, tile, BLOCK_Q: tl.constexpr):
    """The chunk whose rows tile number `tile` has; `num_chunks`: rows after the last chunk; -1: rows before the first.

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
def find_tile(query_starts, context_lengths, num_chunks, num_rows, tile, BLOCK_Q: tl.constexpr):
    """(chunk, first row, end of the chunk's rows, context) of a tile; with a first row from `end` on there is no work.

    Rows after the last chunk are those of chunk number `num_chunks`, whose context is 0.
    """
    chunk = find_chunk(query_starts, num_chunks, tile, BLOCK_Q)
    begin = tl.load(query_starts + chunk, mask=chunk >= 0, other=0)
    end = tl.load(query_starts + chunk + 1, mask=(chunk >= 0) & (chunk < num_chunks), other=num_rows)
    end = tl.where(chunk < 0, 0, end)
    context = tl.load(context_lengths + chunk, mask=(chunk >= 0) & (chunk < num_chunks), other=0)
    return chunk, begin + (tile - begin // BLOCK_Q - chunk) * BLOCK_Q, end, context


@triton.jit
def leads(chunk, begin, end, context):
    """Whether a chunk has one row and all before it have one, which is to say that its row has the chunk's number."""
    return (begin == chunk) & (end == chunk + 1) & (context > 0)


@triton.jit
def seen_positions(context, first_row, end, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr):
    """(positions that a tile's last row sees, those in whole blocks that all of its rows see)."""
    first_position = context - end + first_row
    seen = tl.minimum(context, first_position + BLOCK_Q)
    return seen, tl.maximum((first_position + 1) // BLOCK_N, 0) * BLOCK_N


@triton.jit
def rotate_pairs(rows, positions, has_row, cos, sin, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """[N, BLOCK]: `WIDTH` numbers of a query at each of these pointers, dimension 2i rotated with 2i + 1."""
    pairs = tl.arange(0, BLOCK // 2)[None, :]
    has = has_row[:, None] & (pairs < WIDTH // 2)
    even = tl.load(rows[:, None] + 2 * pairs, mask=has, other=0.0).to(tl.float32)
    odd = tl.load(rows[:, None] + 2 * pairs + 1, mask=has, other=0.0).to(tl.float32)
    turn = positions[:, None] * (WIDTH // 2) + pairs
    c, s = tl.load(cos + turn, mask=has, other=0.0), tl.load(sin + turn, mask=has, other=0.0)
    return to_dtype(tl.interleave(even * c - odd * s, odd * c + even * s), rows.dtype.element_ty)


@triton.jit
def split_size(context, num_splits, SPLIT: tl.constexpr, BLOCK_N: tl.constexpr):
    """Positions of one program of a decoding row: SPLIT, or where that is 0 its share among `num_splits` programs."""
    if SPLIT:
        return SPLIT
    return tl.maximum(tl.cdiv(tl.cdiv(context, num_splits), BLOCK_N), 1) * BLOCK_N


@triton.jit
def add_splits(parts, stats, used, columns, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The result [BLOCK_D] of one row and head from its splits, always added in the same order.

    parts  [splits, D] float32 sums; stats [splits, 2] float32: maximum score, sum of exponentials. Other programs may
    have written them just now, so they are read past the first cache.
    """
    LANES: tl.constexpr = 16  # splits whose loads are in flight together
    top, total = tl.full((), FLOOR, tl.float32), tl.full((), 0.0, tl.float32)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, used, LANES):
        splits = start + tl.arange(0, LANES)
        exists = splits < used
        part_top = tl.load(stats + splits * 2, mask=exists, other=FLOOR, cache_modifier=".cg")
        part_total = tl.load(stats + splits * 2 + 1, mask=exists, other=0.0, cache_modifier=".cg")
        in_part = exists[:, None] & (columns < DIM)[None, :]
        part = tl.load(parts + splits[:, None] * DIM + columns[None, :], mask=in_part, other=0.0, cache_modifier=".cg")
        highest = tl.maximum(top, tl.max(part_top, 0))
        fade, part_fade = tl.exp2(top - highest), tl.exp2(part_top - highest)
        total = total * fade + tl.sum(part_total * part_fade, 0)
        acc = acc * fade + tl.sum(part * part_fade[:, None], 0)
        top = highest
    return acc / tl.where(total > 0, total, 1.0)


@triton.jit
def is_last(counter, used):
    """Whether all other splits have been stored; then the counter is zero again, for the next step."""
    tl.debug_barrier()  # the stores of all threads come before the one that counts
    arrived = tl.atomic_add(counter, 1, sem="acq_rel")
    if arrived == used - 1:
        tl.store(counter, 0)
    return arrived == used - 1


@triton.jit(do_not_specialize=["num_splits"], do_not_specialize_on_alignment=["context_lengths"])
def combine_splits(
    parts, stats, out, context_lengths, num_splits,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, SPLIT: tl.constexpr, BLOCK_N: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Add up the splits of BLOCK_D columns of one decoding row and head, where there is more than one split."""
    wait_for_last(CHAINED)
    head, row = tl.program_id(0), tl.program_id(1)
    columns = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    context = tl.load(context_lengths + row)
    used = tl.cdiv(context, split_size(context, num_splits, SPLIT, BLOCK_N))
    if used <= 1:
        return
    row_head = (row * HEADS + head).to(tl.int64)
    first = row_head * num_splits
    result = add_splits(parts + first * DIM, stats + first * 2, used, columns, DIM, BLOCK_D)
    tl.store(out + row_head * DIM + columns, to_dtype(result, out.dtype.element_ty), mask=columns < DIM)
