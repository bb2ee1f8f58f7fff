"""One row times a matrix: what a decoding step of a single sequence does between attention and experts.

cuBLAS reads such a matrix at a third of the card's rate: it is not chained (ops/chain.py), and a matrix is read in few
microseconds. Here each program has its rows of the matrix in registers before it waits for the row that they are
multiplied with, so memory works while earlier small kernels wait for each other. Tensor cores would have nothing to
do: a weight is used once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last
from vl2.ops.linear import multiply, multiply_both
from vl2.ops.saturate_kernel import to_dtype

BLOCK_N, BLOCK_K, NUM_WARPS = 8, 2048, 8
"""A program's rows of the matrix and how much of them it holds at once: 64 numbers a thread."""


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`Backend.linear` (ops/backend.py): of one row by this kernel, of more by cuBLAS."""
    if not _is_for_kernel(x):
        return multiply(x, weight, bias)
    out = x.new_empty(*x.shape[:-1], len(weight))
    _launch(x, weight, bias, out, weight[:0], out)
    return out


def linear_both(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.linear_both` (ops/backend.py): of one row in one launch."""
    if not _is_for_kernel(x):
        return multiply_both(x, first, second)
    outs = x.new_empty(*x.shape[:-1], len(first)), x.new_empty(*x.shape[:-1], len(second))
    _launch(x, first, None, outs[0], second, outs[1])
    return outs


def _is_for_kernel(x: torch.Tensor) -> bool:
    """One row of 16 bits."""
    return x.numel() == x.shape[-1] and x.dtype != torch.float32


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    second: torch.Tensor,
    second_out: torch.Tensor,
) -> None:
    (out_width, in_width), num_tiles = weight.shape, triton.cdiv(len(weight), BLOCK_N)
    _multiply[(num_tiles + triton.cdiv(len(second), BLOCK_N),)](
        x, weight, out if bias is None else bias, out, second, second_out, in_width, out_width, len(second), num_tiles,
        HAS_BIAS=bias is not None, BLOCK_N=BLOCK_N, BLOCK_K=min(BLOCK_K, triton.next_power_of_2(in_width)),
        num_warps=NUM_WARPS, **chained(x.device),
    )  # fmt: skip


@triton.jit(do_not_specialize=["out_width", "second_width", "num_tiles"])
def _multiply(
    x, weight, bias, out, second, second_out, in_width, out_width, second_width, num_tiles,
    HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Of the first matrix `num_tiles` programs, of the second the rest."""
    tile = tl.program_id(0)
    if tile >= num_tiles:
        tile -= num_tiles
        weight, out, out_width = second, second_out, second_width
    column, k = tile * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    is_column = column < out_width
    weights = weight + column.to(tl.int64)[:, None] * in_width
    first = tl.load(weights + k[None, :], mask=is_column[:, None] & (k < in_width)[None, :], other=0.0)
    wait_for_last(CHAINED)  # only the weights are there before
    row = tl.load(x + k, mask=k < in_width, other=0.0).to(tl.float32)
    total = tl.sum(first.to(tl.float32) * row[None, :], 1)
    for start in range(BLOCK_K, in_width, BLOCK_K):
        at = start + k
        row = tl.load(x + at, mask=at < in_width, other=0.0).to(tl.float32)
        more = tl.load(weights + at[None, :], mask=is_column[:, None] & (at < in_width)[None, :], other=0.0)
        total += tl.sum(more.to(tl.float32) * row[None, :], 1)
    if HAS_BIAS:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)
    tl.store(out + column, to_dtype(total, out.dtype.element_ty), mask=is_column)
