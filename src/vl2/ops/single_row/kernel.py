"""One row times a matrix: what a decoding step of a single sequence does between attention and experts.

cuBLAS reads such a matrix at a third of the card's rate: it is not chained (ops/chain.py), and a matrix is read in few
microseconds. Here each program has its rows of the matrix in registers before it waits for the row that they are
multiplied with, so memory works while earlier small kernels wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last
from vl2.ops.linear import multiply, multiply_joined
from vl2.ops.quantized_weight.weight import QuantizedWeight
from vl2.ops.saturate_kernel import to_dtype
from vl2.ops.single_row.kernel_common import (
    Tile,
    form_of,
    is_one_row,
    load_part,
    multiply_part,
    multiply_rest,
    parts_of,
)

Matrix: TypeAlias = torch.Tensor | QuantizedWeight
TILES = {16: Tile(8, 2048, 8), 8: Tile(1, 2048, 2), 4: Tile(2, 2048, 4)}
"""By a weight's bits, measured on an H100."""
HEAD_TILE = Tile(4, 2048, 4)
"""Of a quantised vocabulary, which has programs enough; measured as the others."""


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`Backend.linear` (ops/backend.py): of one row by this kernel, of more by cuBLAS."""
    return multiply_row(x, [weight], bias)[0] if is_one_row(x) else multiply(x, weight, bias)


def linear_both(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.linear_both` (ops/backend.py): of one row in one launch, of few in one product of weights that lie
    together in memory. Rows of the results are strided then."""
    if is_one_row(x):
        outs = multiply_row(x, [first, second])
        return outs[0], outs[1]
    return multiply_joined(x, first, second, multiply)


def multiply_row(
    x: torch.Tensor,
    matrices: Sequence[Matrix],
    bias: torch.Tensor | None = None,
    tile: Tile | None = None,
    out_dtype: torch.dtype | None = None,
) -> list[torch.Tensor]:
    """x (..., K), one row of 16 bits, times one matrix [N, K] with a bias or none, or two that are alike but in N.

    out_dtype  that of x if there is none
    """
    first, second = matrices[0], matrices[-1]
    (codes, scales), (second_codes, second_scales) = parts_of(first), parts_of(second)
    tile = tile or TILES[16 if isinstance(first, torch.Tensor) else first.scheme.bits]
    outs = [x.new_empty(*x.shape[:-1], parts_of(m)[0].shape[-2], dtype=out_dtype or x.dtype) for m in matrices]
    widths = [out.shape[-1] for out in outs]
    num_tiles = [triton.cdiv(width, tile.block_n) for width in widths]
    _multiply[(sum(num_tiles),)](
        x, codes, scales, outs[0] if bias is None else bias, outs[0], second_codes, second_scales, outs[-1],
        x.shape[-1], codes.stride(-2), widths[0], widths[-1], num_tiles[0], HAS_BIAS=bias is not None,
        **form_of(first, tile, x.shape[-1]), num_warps=tile.num_warps, **chained(x.device),
    )  # fmt: skip
    return outs


@triton.jit(do_not_specialize=["out_width", "second_width", "num_tiles"])
def _multiply(
    x, codes, scales, bias, out, second_codes, second_scales, second_out, in_width, row_words, out_width, second_width,
    num_tiles, HAS_BIAS: tl.constexpr, STEP: tl.constexpr, BITS: tl.constexpr, GROUP_STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr, HAS_ASM: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Of the first matrix `num_tiles` programs, of the second the rest."""
    tile = tl.program_id(0)
    if tile >= num_tiles:
        tile -= num_tiles
        codes, scales, out, out_width = second_codes, second_scales, second_out, second_width
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = column < out_width
    words, scale = load_part(
        codes, scales, column, is_column, 0, in_width, row_words, out_width, STEP, BITS, GROUP_STEPS, BLOCK_S
    )
    wait_for_last(CHAINED)  # only the weights are there before
    total = multiply_part(words, scale, x, 0, in_width, STEP, BITS, BLOCK_S, HAS_ASM)
    total += multiply_rest(
        codes, scales, column, is_column, x, in_width, row_words, out_width, STEP, BITS, GROUP_STEPS, BLOCK_S, HAS_ASM
    )
    if HAS_BIAS:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)
    tl.store(out + column, to_dtype(total, out.dtype.element_ty), mask=is_column)
