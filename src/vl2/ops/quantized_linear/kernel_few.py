"""Products of few rows with a quantised matrix: a program takes a few outputs, and its warps share out the inputs.

As `ops/quantized_experts/kernel_few.py`, where it says why; nothing is left to add up between programs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last
from vl2.ops.experts.kernel_common import precision
from vl2.ops.quantized_weight.kernel_common import add_steps, has_asm, lines_of_share, prefetch
from vl2.ops.quantized_weight.triton_layout import step_of
from vl2.ops.quantized_weight.weight import QuantizedWeight
from vl2.ops.saturate_kernel import to_dtype


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows of x, outputs, and the warps that share the inputs."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


ROWS = 8
"""Up to so many rows: with more, each byte of the weight is worth the work of whole tiles."""
TILE = Tile(ROWS, 16, 4, 3)


def multiply_few(
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    products: list[tuple[QuantizedWeight, torch.Tensor]],
    tile: Tile,
) -> None:
    """out [M, N] = rows [M, K] Wᵀ + b, of rows of 16 bits, for one or two (W, out), which are alike but in width."""
    (weight, out), (second, second_out) = products[0], products[-1]
    step, num_tiles = step_of(weight.scheme, weight.in_width), triton.cdiv(weight.out_width, tile.block_n)
    num_others = triton.cdiv(second.out_width, tile.block_n) if len(products) > 1 else 0
    _linear[num_tiles + num_others, triton.cdiv(len(rows), tile.block_m)](
        rows, weight.codes, weight.scales, out if bias is None else bias, out, second.codes, second.scales, second_out,
        len(rows), weight.codes.stride(-2), weight.out_width, second.out_width, num_tiles, rows.stride(0),
        weight.in_width // step, HAS_BIAS=bias is not None,
        GROUP_STEPS=(weight.scheme.group_size or weight.in_width) // step, STEP=step, BITS=weight.scheme.bits,
        LINES=lines_of_share(weight, num_tiles), SPLITS=tile.num_warps, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
        HAS_ASM=has_asm(out.device), PRECISION=precision(rows), num_warps=tile.num_warps, num_stages=tile.num_stages,
        **chained(out.device),
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "num_tiles"])
def _linear(
    x, codes, scales, bias, out, second_codes, second_scales, second_out, num_rows, row_words, out_width, second_width,
    num_tiles, row_stride, num_steps, HAS_BIAS: tl.constexpr, GROUP_STEPS: tl.constexpr, STEP: tl.constexpr,
    BITS: tl.constexpr, LINES: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_ASM: tl.constexpr, PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Of the first matrix `num_tiles` programs, of the second the rest."""
    tile = tl.program_id(0)
    if tile >= num_tiles:
        tile -= num_tiles
        codes, scales, out, out_width = second_codes, second_scales, second_out, second_width
    if CHAINED:  # the weight is there before the rows are
        own = tile.to(tl.int64) * BLOCK_N * row_words
        prefetch(codes, own, min(own + BLOCK_N * row_words, out_width.to(tl.int64) * row_words), LINES)
    wait_for_last(CHAINED)
    WORDS: tl.constexpr = STEP // (4 if BITS == 4 else 1)
    column, row = tile * BLOCK_N + tl.arange(0, BLOCK_N), tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_column, is_row = column < out_width, row < num_rows
    split, j = tl.arange(0, SPLITS), tl.arange(0, WORDS)
    words_at = codes + column.to(tl.int64)[None, :, None] * row_words + (split[:, None] * WORDS + j)[:, None, :]
    inputs_at = x + row.to(tl.int64)[None, None, :] * row_stride + (split[:, None] * STEP + j)[:, :, None]
    total = tl.zeros((SPLITS, BLOCK_N, BLOCK_M), tl.float32)
    for first in range(0, num_steps, SPLITS):
        is_step = first + split < num_steps
        words = tl.load(words_at + first * WORDS, mask=is_step[:, None, None] & is_column[None, :, None], other=0.0)
        scales_at = scales + ((first + split) // GROUP_STEPS * out_width)[:, None] + column[None, :]
        scale = tl.load(scales_at, mask=is_step[:, None] & is_column[None, :], other=0.0)
        inputs, is_input = inputs_at + first * STEP, is_step[:, None, None] & is_row[None, None, :]
        total = add_steps(total, words, scale, inputs, is_input, WORDS, BITS, HAS_ASM, PRECISION)
    result = tl.sum(total, 0)
    if HAS_BIAS:
        result += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[:, None]
    at = row.to(tl.int64)[None, :] * out_width + column[:, None]
    tl.store(out + at, to_dtype(result, out.dtype.element_ty), mask=is_row[None, :] & is_column[:, None])
