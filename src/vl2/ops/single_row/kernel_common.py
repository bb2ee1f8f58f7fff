"""A few rows of a matrix times one row of inputs, in whatever numbers the matrix is held.

16 bits as they are, or codes of 4 or 8 bits (ops/quantized_weight): words [N, steps, words of a step], which a program
has in registers, and a scale for each output and step. There is nothing for tensor cores to do: a weight is used once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vl2.ops.quantized_weight.kernel_common import has_asm, plane
from vl2.ops.quantized_weight.triton_layout import STEP, step_of
from vl2.ops.quantized_weight.weight import QuantizedWeight


@dataclass(frozen=True, slots=True)
class Tile:
    """Outputs of a program, inputs that it holds at once, and its warps."""

    block_n: int
    block_k: int
    num_warps: int


def is_one_row(x: torch.Tensor) -> bool:
    """Of 16 bits."""
    return x.numel() == x.shape[-1] and x.dtype != torch.float32


def parts_of(matrix: torch.Tensor | QuantizedWeight) -> tuple[torch.Tensor, torch.Tensor]:
    """(numbers or codes, scales); what has no scales names itself twice."""
    return (matrix, matrix) if isinstance(matrix, torch.Tensor) else (matrix.codes, matrix.scales)


def form_of(matrix: torch.Tensor | QuantizedWeight, tile: Tile, in_width: int) -> dict[str, int | bool]:
    """The constants of a kernel that multiplies it."""
    step, bits, group_steps = STEP, 16, 1
    if isinstance(matrix, QuantizedWeight):
        step, bits = step_of(matrix.scheme, in_width), matrix.scheme.bits
        group_steps = (matrix.scheme.group_size or in_width) // step
    num_steps = triton.next_power_of_2(triton.cdiv(in_width, step))
    return dict(
        STEP=step, BITS=bits, GROUP_STEPS=group_steps, BLOCK_N=tile.block_n,
        BLOCK_S=min(max(tile.block_k // step, 1), num_steps), HAS_ASM=has_asm(parts_of(matrix)[0].device),
    )  # fmt: skip


@triton.jit
def load_part(
    codes, scales, column, is_column, first, in_width, row_words, out_width, STEP: tl.constexpr, BITS: tl.constexpr,
    GROUP_STEPS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """(words [N, S, W], scale [N, S]) of the steps from `first` on."""
    WORDS: tl.constexpr = STEP // 4 if BITS == 4 else STEP
    step, j = first + tl.arange(0, BLOCK_S), tl.arange(0, WORDS)
    inside = (step[:, None] * STEP + j[None, :] < in_width)[None]
    words_at = codes + column.to(tl.int64)[:, None, None] * row_words + (step[:, None] * WORDS + j[None, :])[None]
    words = tl.load(words_at, mask=is_column[:, None, None] & inside, other=0.0)
    if BITS == 16:
        return words, tl.full((column.shape[0], BLOCK_S), 1.0, tl.float32)
    scales_at = scales + (step // GROUP_STEPS * out_width)[None, :] + column[:, None]
    scale = tl.load(scales_at, mask=is_column[:, None] & (step * STEP < in_width)[None, :], other=0.0)
    return words, scale.to(tl.float32)


@triton.jit
def multiply_part(
    words, scale, x, first, in_width, STEP: tl.constexpr, BITS: tl.constexpr, BLOCK_S: tl.constexpr,
    HAS_ASM: tl.constexpr,
):  # fmt: skip
    """[N] float32: what these steps add to the outputs. Each step's sum is taken, then scaled."""
    PLANES: tl.constexpr = 4 if BITS == 4 else 1
    WORDS: tl.constexpr = STEP // PLANES
    at = (first + tl.arange(0, BLOCK_S))[:, None] * STEP + tl.arange(0, WORDS)[None, :]
    DTYPE: tl.constexpr = tl.float32 if BITS == 8 else x.dtype.element_ty  # widened once
    total = tl.zeros(words.shape, tl.float32)
    for p in tl.static_range(PLANES):
        row = tl.load(x + at + p * WORDS, mask=at < in_width, other=0.0)
        numbers = words if BITS == 16 else plane(words, p, BITS, DTYPE, HAS_ASM)
        total += numbers.to(tl.float32) * row.to(tl.float32)[None]
    if BITS == 16:
        return tl.sum(tl.sum(total, 2), 1)
    return tl.sum(tl.sum(total, 2) * scale, 1)


@triton.jit
def multiply_rest(
    codes, scales, column, is_column, x, in_width, row_words, out_width, STEP: tl.constexpr, BITS: tl.constexpr,
    GROUP_STEPS: tl.constexpr, BLOCK_S: tl.constexpr, HAS_ASM: tl.constexpr,
):  # fmt: skip
    """[N] float32: what all steps after the first BLOCK_S add to the outputs."""
    total = tl.zeros(column.shape, tl.float32)
    for first in range(BLOCK_S, tl.cdiv(in_width, STEP), BLOCK_S):
        words, scale = load_part(
            codes, scales, column, is_column, first, in_width, row_words, out_width, STEP, BITS, GROUP_STEPS, BLOCK_S
        )
        total += multiply_part(words, scale, x, first, in_width, STEP, BITS, BLOCK_S, HAS_ASM)
    return total
