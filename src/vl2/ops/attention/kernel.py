"""Attention over pages in Triton: which kernel runs, on which grid, with which tiles.

A step in which every chunk has one row decodes: the context of a row is cut into splits of equal numbers of
positions, each is summed by a program of its own, and a second kernel adds them up in order. Any other step runs the
prefill kernel for all of its rows. Nothing here reads the device: grids follow from shapes, and programs without work
end at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton

from vl2.ops.attention.batch import AttentionBatch
from vl2.ops.attention.kernel_common import combine_splits
from vl2.ops.attention.kernel_heads import decode_heads, prefill_heads
from vl2.ops.attention.kernel_latent import decode_latent, prefill_latent

LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Tile:
    """How a kernel is cut up. Sizes are those of `ops/attention/kernel_*.py`."""

    block_n: int  # positions taken at once
    num_warps: int
    num_stages: int  # tiles of positions in flight
    block_m: int = 0  # prefill: rows × heads
    split: int = 0  # decode: positions of one program at large batches
    terms: int = 1  # of the probabilities in the model's dtype: 1 rounds them once, 2 keeps them to float32's last bits

    @property
    def options(self) -> dict[str, int]:
        return dict(BLOCK_N=self.block_n, TERMS=self.terms, num_warps=self.num_warps, num_stages=self.num_stages)


TILES = {
    # for wgmma: positions (decode) or rows (prefill) come in 64s
    "decode_heads": Tile(block_n=64, num_warps=4, num_stages=2, split=256),
    "prefill_heads": Tile(block_n=64, num_warps=4, num_stages=3, block_m=64),
    "decode_latent": Tile(block_n=64, num_warps=4, num_stages=2, split=256),
    "prefill_latent": Tile(block_n=64, num_warps=8, num_stages=2, block_m=32),
}
FLOAT32_TILES = {
    # no tensor core: products are unrolled, so tiles are small
    "decode_heads": Tile(block_n=32, num_warps=4, num_stages=1, split=256),
    "prefill_heads": Tile(block_n=32, num_warps=4, num_stages=1, block_m=32),
    "decode_latent": Tile(block_n=16, num_warps=8, num_stages=1, split=256),
    "prefill_latent": Tile(block_n=16, num_warps=8, num_stages=1, block_m=16),
}


FEW_PROGRAMS, SMALL_SPLIT = 20, 64
"""A decode step of so few rows × KV heads (rows alone where heads share them) is cut finer, to keep the GPU busy."""


def split_for(tile: Tile, num_programs: int) -> int:
    return min(tile.split, SMALL_SPLIT) if num_programs <= FEW_PROGRAMS else tile.split


def tile_for(kernel: str, dtype: torch.dtype) -> Tile:
    return (FLOAT32_TILES if dtype == torch.float32 else TILES)[kernel]


def attend_heads(q: torch.Tensor, pool: torch.Tensor, batch: AttentionBatch, scale: float) -> torch.Tensor:
    """`Backend.attend_heads` (ops/backend.py)."""
    assert q.is_contiguous() and pool.is_contiguous()
    (num_rows, heads, dim), (page_size, kv_heads) = q.shape, pool.shape[2:4]
    out = torch.empty_like(q)
    sizes = dict(HEADS=heads, KV_HEADS=kv_heads, DIM=dim, BLOCK_D=block(dim), PAGE_SIZE=page_size)
    if batch.max_query_rows > 1:
        tile = tile_for("prefill_heads", q.dtype)
        block_m = max(tile.block_m, block(heads // kv_heads))
        prefill_heads[num_tiles(num_rows, batch, block_m // (heads // kv_heads)), kv_heads](
            q, pool[0], pool[1], out, *chunks(batch), scale * LOG2_E, *counts(num_rows, batch), **sizes,
            BLOCK_M=block_m, **tile.options,
        )  # fmt: skip
        return out
    tile = tile_for("decode_heads", q.dtype)
    splits = Splits.of(q, batch, page_size, split_for(tile, num_rows * kv_heads), dim)
    if splits.num_rows:
        decode_heads[kv_heads, splits.count, splits.num_rows](
            q, pool[0], pool[1], batch.block_tables, batch.context_lengths, splits.parts, splits.stats,
            scale * LOG2_E, batch.block_tables.shape[1], splits.count, **sizes, BLOCK_G=block(heads // kv_heads),
            SPLIT=splits.size, **tile.options,
        )  # fmt: skip
    splits.combine(out, batch)
    return out


def attend_latent(q: torch.Tensor, pool: torch.Tensor, batch: AttentionBatch, rank: int, scale: float) -> torch.Tensor:
    """`Backend.attend_latent` (ops/backend.py)."""
    assert q.is_contiguous() and pool.is_contiguous()
    (num_rows, heads, width), page_size = q.shape, pool.shape[1]
    out = torch.empty(num_rows, heads, rank, dtype=q.dtype, device=q.device)
    sizes = dict(HEADS=heads, RANK=rank, ROPE=width - rank, PAGE_SIZE=page_size)
    sizes |= dict(BLOCK_R=block(rank), BLOCK_P=block(width - rank))
    if batch.max_query_rows > 1:
        tile = tile_for("prefill_latent", q.dtype)
        block_m = max(tile.block_m, block(heads))
        prefill_latent[(num_tiles(num_rows, batch, block_m // heads),)](
            q, pool, out, *chunks(batch), scale * LOG2_E, *counts(num_rows, batch), **sizes,
            BLOCK_M=block_m, **tile.options,
        )  # fmt: skip
        return out
    tile = tile_for("decode_latent", q.dtype)
    splits = Splits.of(q, batch, page_size, split_for(tile, num_rows), rank)
    block_h = min(block(heads), 32)
    if splits.num_rows:
        decode_latent[triton.cdiv(heads, block_h), splits.count, splits.num_rows](
            q, pool, batch.block_tables, batch.context_lengths, splits.parts, splits.stats,
            scale * LOG2_E, batch.block_tables.shape[1], splits.count, **sizes, BLOCK_H=block_h,
            SPLIT=splits.size, **tile.options,
        )  # fmt: skip
    splits.combine(out, batch)
    return out


def block(width: int) -> int:
    """Block sizes are powers of two, and a matrix product takes 16 at least."""
    return max(16, triton.next_power_of_2(width))


def num_tiles(num_rows: int, batch: AttentionBatch, block_q: int) -> int:
    """Enough for any chunks of so many rows (`find_chunk`), those of no chunk included."""
    return num_rows // block_q + batch.block_tables.shape[0] + 1


def chunks(batch: AttentionBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return batch.block_tables, batch.query_starts, batch.context_lengths


def counts(num_rows: int, batch: AttentionBatch) -> tuple[int, int, int]:
    return batch.block_tables.shape[0], num_rows, batch.block_tables.shape[1]


@dataclass(frozen=True)
class Splits:
    """Partial results of a decode step: row s belongs to chunk s, rows from S on to none."""

    parts: torch.Tensor  # [rows, H, splits, D] float32
    stats: torch.Tensor  # [rows, H, splits, 2] float32: maximum score, sum of exponentials
    size: int  # positions of a split

    @classmethod
    def of(cls, q: torch.Tensor, batch: AttentionBatch, page_size: int, size: int, width: int) -> Splits:
        num_chunks, max_pages = batch.block_tables.shape
        shape = min(len(q), num_chunks), q.shape[1], max(1, triton.cdiv(max_pages * page_size, size))
        parts = torch.empty(*shape, width, dtype=torch.float32, device=q.device)
        return cls(parts, torch.empty(*shape, 2, dtype=torch.float32, device=q.device), size)

    @property
    def num_rows(self) -> int:
        return len(self.parts)

    @property
    def count(self) -> int:
        return self.parts.shape[2]

    def combine(self, out: torch.Tensor, batch: AttentionBatch) -> None:
        num_rows, heads, width = out.shape
        combine_splits[heads, num_rows](
            self.parts, self.stats, out, batch.context_lengths, self.num_rows, self.count,
            HEADS=heads, DIM=width, BLOCK_D=block(width), SPLIT=self.size, num_warps=4 if width > 128 else 1,
        )  # fmt: skip
