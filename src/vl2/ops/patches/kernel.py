"""Pixels → rows of patches in one pass, as wide as cuBLAS's fast kernels want them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last
from vl2.ops.patches.reference import PIXEL_MEAN, PIXEL_STD
from vl2.ops.rows import round_up

MULTIPLE = 16
"""Of a row's width: the copy engine (TMA) wants rows of multiples of 16 bytes, which 3 · 14 · 14 numbers are not."""


def cut_patches(tiles: torch.Tensor, size: int, dtype: torch.dtype, multiple: int = MULTIPLE) -> torch.Tensor:
    """`Backend.cut_patches` (ops/backend.py)."""
    tiles = tiles.contiguous()
    num_tiles, side = tiles.shape[:2]
    patches, width = (side // size) ** 2, round_up(3 * size**2, multiple)
    rows = torch.empty(num_tiles, patches, width, dtype=dtype, device=tiles.device)
    _cut_patches[(num_tiles * patches,)](
        tiles, rows, width, PIXEL_MEAN, PIXEL_STD, SIDE=side, SIZE=size, BLOCK=triton.next_power_of_2(width),
        **chained(tiles.device),
    )  # fmt: skip
    return rows


@triton.jit
def _cut_patches(
    tiles, rows, width, mean, std, SIDE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr
):
    """One patch a program: [SIDE, SIDE, 3] → [3 · SIZE · SIZE], then zeros."""
    wait_for_last(CHAINED)
    GRID: tl.constexpr = SIDE // SIZE
    number = tl.program_id(0)
    tile, patch = number // (GRID * GRID), number % (GRID * GRID)
    column = tl.arange(0, BLOCK)
    channel, down, right = column // (SIZE * SIZE), column // SIZE % SIZE, column % SIZE
    pixel = (patch // GRID * SIZE + down) * SIDE + patch % GRID * SIZE + right
    at = tiles + tile.to(tl.int64) * (3 * SIDE * SIDE) + pixel * 3 + channel
    value = tl.load(at, mask=channel < 3, other=0).to(tl.float32)
    value = tl.where(channel < 3, tl.div_rn(tl.div_rn(value, 255.0) - mean, std), 0.0)
    tl.store(rows + number.to(tl.int64) * width + column, value.to(rows.dtype.element_ty), mask=column < width)
