"""Attention over pages in Triton: which kernel runs, on which grid, with which tiles (MLA: `kernel_mla.py`).

A chunk of one row decodes: its context is cut into splits, each is summed by a program of its own, and their sums are
added up in order. Few rows are cut into many splits, so that all of the card works on them. All other chunks are
prefill, and so are single rows that do not stand at the step's beginning. Nothing here reads the device: grids follow
from shapes, and programs without work end at once.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import triton

from vl2.ops.attention.batch import AttentionBatch
from vl2.ops.attention.kernel_common import combine_splits
from vl2.ops.attention.kernel_heads import decode_heads, prefill_heads
from vl2.ops.attention.kernel_single import decode_single
from vl2.ops.chain import chained
from vl2.ops.saturate import FLOAT8
from vl2.ops.tuning import tuned

LOG2_E = math.log2(math.e)

FIXED_SPLIT = 256
"""Positions of a split where a row's bits must not depend on the batch, which else decides the order of sums."""


@dataclass(frozen=True)
class Tile:
    """How a kernel is cut up. Sizes are those of `ops/attention/kernel_*.py`."""

    block_n: int  # positions taken at once
    num_warps: int
    num_stages: int  # tiles of positions in flight
    block_m: int = 0  # prefill: rows × heads
    programs: int = 0  # decode: how many there shall be, if splits can make so many
    last_adds: bool = False  # decode: the program that comes last adds up the splits, instead of a second kernel
    streams: int = 0  # decode_latent: how many positions ahead the card fetches rows into its cache
    terms: int = 1  # of the probabilities in the model's dtype: 1 rounds them once, 2 keeps them to float32's last bits

    @property
    def options(self) -> dict[str, int]:
        return dict(BLOCK_N=self.block_n, TERMS=self.terms, num_warps=self.num_warps, num_stages=self.num_stages)


KERNELS = "decode_heads", "prefill_heads", "prefill_latent", "prefill_expanded"
LATENT_DECODES = "decode_latent_one", "decode_latent", "decode_latent_many"
"""Of one row, of more, and of more than the card has multiprocessors."""
DECODE_SINGLE = {"decode_single": Tile(block_n=64, num_warps=4, num_stages=1, programs=1056, last_adds=True)}
TILES = {kernel: tuned(kernel, Tile) for kernel in (*KERNELS, *LATENT_DECODES)} | DECODE_SINGLE
"""Rows (prefill) come in 64s, for wgmma. With two stages nothing is loaded during the products (see `page_slots`)."""
FLOAT32_TILES = DECODE_SINGLE | {
    # no tensor core: products are unrolled, so tiles are small
    "decode_heads": Tile(block_n=32, num_warps=4, num_stages=1, programs=264, last_adds=True),
    "prefill_heads": Tile(block_n=32, num_warps=4, num_stages=1, block_m=32),
    **dict.fromkeys(LATENT_DECODES, Tile(block_n=16, num_warps=8, num_stages=1, programs=132)),
    "prefill_latent": Tile(block_n=16, num_warps=8, num_stages=1, block_m=16),
    "prefill_expanded": Tile(block_n=16, num_warps=8, num_stages=1, block_m=16),
}


def tile_for(kernel: str, dtype: torch.dtype) -> Tile:
    return (FLOAT32_TILES if dtype == torch.float32 else TILES)[kernel]


def attend_heads(q: torch.Tensor, pool: torch.Tensor, batch: AttentionBatch, scale: float) -> torch.Tensor:
    """`Backend.attend_heads` (ops/backend.py)."""
    assert q.is_contiguous() and pool.is_contiguous()
    out, num = torch.empty_like(q), batch.num_decodes
    if batch.max_query_rows <= 1:
        _decode_heads(q, pool, out, batch, scale)
    elif num:
        decodes, rest = batch.split()
        _decode_heads(q[:num], pool, out[:num], decodes, scale)
        _prefill_heads(q, pool, out, rest, scale)
    else:
        if batch.may_decode:
            num = min(len(q), len(batch.block_tables))
            _decode_heads(q[:num], pool, out[:num], batch, scale)
        _prefill_heads(q, pool, out, batch, scale)
    return out


def _head_sizes(q: torch.Tensor, pool: torch.Tensor) -> dict[str, int]:
    (_, heads, dim), (page_size, kv_heads) = q.shape, pool.shape[2:4]
    return dict(HEADS=heads, KV_HEADS=kv_heads, DIM=dim, BLOCK_D=block(dim), PAGE_SIZE=page_size)


def _decode_heads(q: torch.Tensor, pool: torch.Tensor, out: torch.Tensor, batch: AttentionBatch, scale: float) -> None:
    (num_rows, heads, dim), (page_size, kv_heads) = q.shape, pool.shape[2:4]
    if not num_rows:
        return
    is_single = pool.dtype == FLOAT8 and heads == kv_heads and dim % 4 == page_size % 4 == 0
    tile = tile_for("decode_single" if is_single else "decode_heads", q.dtype)
    splits = Splits.of(q, batch, tile, kv_heads, page_size, dim)
    common = *splits.arguments(batch), scale * LOG2_E, *counts(batch, splits)
    settings = dict(SPLIT=splits.size, LAST_ADDS=splits.last_adds, IS_MIXED=batch.may_decode, **chained(q.device))
    grid = kv_heads, splits.count, num_rows
    if is_single:
        words, block_w = pool.view(torch.int32), triton.next_power_of_2(dim // 4)
        most_rows = min(tile.block_n, max(1, 128 * tile.num_warps // block_w))  # four words of each to a thread
        rows = min(page_size & -page_size, most_rows)  # of one page, as its largest power of two divides it
        decode_single[grid](
            q, words[0], words[1], out, batch.query_starts, *common, HEADS=heads, DIM=dim, BLOCK_W=block_w,
            PAGE_SIZE=page_size, ROWS=rows, STEPS=tile.block_n // rows, num_warps=tile.num_warps, **settings,
        )  # fmt: skip
    else:
        decode_heads[grid](
            q, pool[0], pool[1], out, batch.query_starts, *common, **_head_sizes(q, pool),
            BLOCK_G=block(heads // kv_heads), **tile.options, **settings,
        )  # fmt: skip
    splits.combine(out, batch)


def _prefill_heads(q: torch.Tensor, pool: torch.Tensor, out: torch.Tensor, batch: AttentionBatch, scale: float) -> None:
    """Rows before the batch's first are left as they are."""
    num_rows, group, kv_heads = len(q), q.shape[1] // pool.shape[3], pool.shape[3]
    tile = tile_for("prefill_heads", q.dtype)
    block_m = max(tile.block_m, block(group))
    prefill_heads[num_tiles(num_rows, batch, block_m // group), kv_heads](
        q, pool[0], pool[1], out, *chunks(batch), scale * LOG2_E, *row_counts(num_rows, batch),
        **_head_sizes(q, pool), BLOCK_M=block_m, IS_MIXED=batch.may_decode, **tile.options,
    )  # fmt: skip


def block(width: int) -> int:
    """Block sizes are powers of two, and a matrix product takes 16 at least."""
    return max(16, triton.next_power_of_2(width))


def num_tiles(num_rows: int, batch: AttentionBatch, block_q: int) -> int:
    """Enough for any chunks of so many rows (`find_chunk`), those of no chunk included."""
    return num_rows // block_q + batch.block_tables.shape[0] + 1


def chunks(batch: AttentionBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return batch.block_tables, batch.query_starts, batch.context_lengths


def row_counts(num_rows: int, batch: AttentionBatch) -> tuple[int, int, int]:
    return batch.block_tables.shape[0], num_rows, batch.block_tables.shape[1]


def counts(batch: AttentionBatch, splits: Splits) -> tuple[int, int, int]:
    return *batch.block_tables.shape, splits.count


MAX_COUNTERS = 1 << 16


@functools.cache
def arrival_counters(device: torch.device) -> torch.Tensor:
    """Zeros: kernels count in them and leave zeros again, so steps of one device must run one after the other.

    They are made before a graph is captured, by the run that warms it up.
    """
    return torch.zeros(MAX_COUNTERS, dtype=torch.int32, device=device)


@dataclass(frozen=True)
class Splits:
    """Partial results of a decode step: row s belongs to chunk s, rows from S on to none."""

    parts: torch.Tensor  # [Q, H, splits, D] float32; a row of one split does not use it
    stats: torch.Tensor  # [Q, H, splits, 2] float32: maximum score, sum of exponentials
    size: int  # positions of a split; 0: a share of the row's context
    last_adds: bool
    block_n: int

    @classmethod
    def of(
        cls, q: torch.Tensor, batch: AttentionBatch, tile: Tile, programs: int, page_size: int, width: int
    ) -> Splits:
        """For so many programs a split. The table's width bounds what a context can be."""
        rows, most = len(q), batch.block_tables.shape[1] * page_size
        size = FIXED_SPLIT if batch.has_fixed_splits else 0
        count = triton.cdiv(most, size or tile.block_n)
        if not size:
            count = min(count, tile.programs // (rows * programs))
        shape = rows, q.shape[1], max(1, count)
        parts = torch.empty(*shape, width if count > 1 else 0, dtype=torch.float32, device=q.device)
        stats = torch.empty(*shape, 2, dtype=torch.float32, device=q.device)
        last_adds = tile.last_adds and count > 1 and rows * programs <= MAX_COUNTERS
        return cls(parts, stats, size, last_adds, tile.block_n)

    @property
    def count(self) -> int:
        return self.parts.shape[2]

    def arguments(self, batch: AttentionBatch) -> tuple[torch.Tensor, ...]:
        counters = arrival_counters(self.stats.device)
        return batch.block_tables, batch.context_lengths, self.parts, self.stats, counters

    def combine(self, out: torch.Tensor, batch: AttentionBatch) -> None:
        """Where the splits' own kernel has not done it."""
        rows, heads, count, width = self.parts.shape
        if count == 1 or self.last_adds or not len(batch.block_tables):
            return
        # Where splits are fixed, a program has all columns: its threads each add up whole ones, and none waits. The
        # order of a sum depends on this size, which therefore must not depend on the batch.
        block_d = block(width) if self.size else min(128, block(width))
        combine_splits[heads, min(rows, len(batch.block_tables)), triton.cdiv(width, block_d)](
            self.parts, self.stats, out, batch.context_lengths, count, HEADS=heads, DIM=width, BLOCK_D=block_d,
            SPLIT=self.size, BLOCK_N=self.block_n, num_warps=4, **chained(out.device),
        )  # fmt: skip
