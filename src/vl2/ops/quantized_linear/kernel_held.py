"""Products of up to 8 rows with a matrix in 4 bits or float8, whose codes are in registers before the rows are there.

As `ops/quantized_weight/kernel_held.py`, where it says how, and `ops/single_row`, which does it without tensor cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last
from vl2.ops.quantized_weight.kernel_held import (
    ROWS,
    held_form,
    load_scales,
    load_words,
    multiply_held,
    multiply_rest_held,
)
from vl2.ops.quantized_weight.weight import QuantizedWeight
from vl2.ops.saturate_kernel import to_dtype


@dataclass(frozen=True, slots=True)
class Tile:
    """Outputs of a program, in sixteens; words of each that it holds at once, and the warps that share them."""

    block_n: int
    words: int
    num_warps: int


TILES = {4: Tile(16, 512, 4), 8: Tile(16, 2048, 8)}
"""By a weight's bits."""


def multiply_few(
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    products: Sequence[tuple[QuantizedWeight, torch.Tensor]],
    tile: Tile | None = None,
) -> None:
    """out [M, N] = rows [M, K] Wᵀ + b, of up to 8 rows of 16 bits, for one or two (W, out) alike but in width."""
    (weight, out), (second, second_out) = products[0], products[-1]
    tile = tile or TILES[weight.scheme.bits]
    num_tiles = triton.cdiv(weight.out_width, tile.block_n)
    num_others = triton.cdiv(second.out_width, tile.block_n) if len(products) > 1 else 0
    assert len(rows) <= ROWS
    _linear[(num_tiles + num_others,)](
        rows, weight.codes, weight.scales, out if bias is None else bias, out, second.codes, second.scales, second_out,
        len(rows), weight.codes.stride(-2), weight.out_width, second.out_width, num_tiles, rows.stride(0),
        HAS_BIAS=bias is not None, BLOCK_N=tile.block_n, **held_form(weight, tile.words), num_warps=tile.num_warps,
        num_stages=1, **chained(out.device),
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "num_tiles"])
def _linear(
    x, codes, scales, bias, out, second_codes, second_scales, second_out, num_rows, row_words, out_width, second_width,
    num_tiles, row_stride, HAS_BIAS: tl.constexpr, GROUP_STEPS: tl.constexpr, NUM_STEPS: tl.constexpr,
    WORDS: tl.constexpr, PLANES: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, HAS_ASM: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Of the first matrix `num_tiles` programs, of the second the rest."""
    tile = tl.program_id(0)
    if tile >= num_tiles:
        tile -= num_tiles
        codes, scales, out, out_width = second_codes, second_scales, second_out, second_width
    start = tile * BLOCK_N
    limit = out_width - start
    codes += start.to(tl.int64) * row_words
    scales += start
    words = load_words(codes, limit, 0, 0, NUM_STEPS, row_words, BLOCK_N, False, WORDS, BLOCK_S)
    scale = load_scales(scales, limit, 0, 0, NUM_STEPS, out_width, GROUP_STEPS, BLOCK_N, False, BLOCK_S)
    wait_for_last(CHAINED)  # only the weights are there before
    n, m = tl.arange(0, BLOCK_N), tl.arange(0, 8)
    rows_at = x + tl.minimum(m, num_rows - 1) * row_stride
    total = multiply_held(words, scale, rows_at, 0, NUM_STEPS, BLOCK_N, WORDS, PLANES, BLOCK_S, HAS_ASM)
    total = multiply_rest_held(
        total, codes, scales, limit, 0, rows_at, NUM_STEPS, row_words, out_width, GROUP_STEPS, BLOCK_N, False, WORDS,
        PLANES, BLOCK_S, HAS_ASM,
    )  # fmt: skip
    if HAS_BIAS:
        total += tl.load(bias + start + n, mask=n < limit, other=0.0).to(tl.float32)[:, None]
    at = out + m.to(tl.int64)[None, :] * out_width + start + n[:, None]
    tl.store(at, to_dtype(total, out.dtype.element_ty), mask=(m < num_rows)[None, :] & (n < limit)[:, None])
