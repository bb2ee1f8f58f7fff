"""The vocabulary's matrix in 8 bits, one scale for each output, times several rows of 16 bits: results in float32.

It has fifty times the outputs of other matrices, so there are programs enough without sharing out inputs; and with one
scale an output all of its products are one sum, scaled at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last
from vl2.ops.quantized_weight.kernel_common import has_asm, plane
from vl2.ops.quantized_weight.triton_layout import step_of
from vl2.ops.quantized_weight.weight import QuantizedWeight


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows, outputs and inputs that a program has at once."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


TILES = (
    Tile(8, 32, 128, 2, 6),
    Tile(16, 64, 128, 4, 5),
    Tile(32, 64, 128, 4, 5),
    Tile(64, 128, 128, 4, 4),
    Tile(128, 128, 64, 8, 4),
)
"""Measured on an H100 with 8, 16, 32, 64 and 128 rows; all fit the 99 KB of Ampere and Ada."""


def choose_tile(num_rows: int) -> Tile:
    """The first that has all rows, or the last."""
    return next((tile for tile in TILES if num_rows <= tile.block_m), TILES[-1])


def multiplies(weight: QuantizedWeight, dtype: torch.dtype) -> bool:
    return weight.scheme.bits == 8 and weight.scheme.group_size is None and dtype != torch.float32


def multiply_logits(rows: torch.Tensor, weight: QuantizedWeight, out: torch.Tensor, tile: Tile) -> None:
    """out [M, N] float32 = rows [M, K] Wᵀ."""
    tiles_m, tiles_n = triton.cdiv(len(rows), tile.block_m), triton.cdiv(weight.out_width, tile.block_n)
    _logits[(tiles_m * tiles_n,)](
        rows, weight.codes, weight.scales, out, len(rows), weight.codes.stride(-2), weight.out_width, rows.stride(0),
        tiles_m, weight.in_width, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
        BLOCK_K=min(tile.block_k, step_of(weight.scheme, weight.in_width)), HAS_ASM=has_asm(out.device),
        num_warps=tile.num_warps, num_stages=tile.num_stages, **chained(out.device),
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "tiles_m"])
def _logits(
    x, codes, scales, out, num_rows, row_words, out_width, row_stride, tiles_m, in_width, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, HAS_ASM: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Programs of the same outputs are neighbours: codes come from memory once."""
    wait_for_last(CHAINED)
    tile_n, tile_m = tl.program_id(0) // tiles_m, tl.program_id(0) % tiles_m
    column, row = tile_n * BLOCK_N + tl.arange(0, BLOCK_N), tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    is_column, is_row, j = column < out_width, row < num_rows, tl.arange(0, BLOCK_K)
    codes_at = codes + column.to(tl.int64)[:, None] * row_words + j[None, :]
    inputs_at = x + row.to(tl.int64)[None, :] * row_stride + j[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for start in range(0, in_width, BLOCK_K):
        own = tl.load(codes_at + start, mask=is_column[:, None], other=0.0)
        inputs = tl.load(inputs_at + start, mask=is_row[None, :], other=0.0)
        total = tl.dot(plane(own, 0, 8, inputs.dtype, HAS_ASM), inputs, total)
    total *= tl.load(scales + column, mask=is_column, other=0.0).to(tl.float32)[:, None]
    at = out + row.to(tl.int64)[None, :] * out_width + column[:, None]
    tl.store(at, total, mask=is_row[None, :] & is_column[:, None])
