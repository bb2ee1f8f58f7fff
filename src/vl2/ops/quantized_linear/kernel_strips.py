"""x Wᵀ + b for very few rows: a strip of outputs of one row a program (`kernel_rows.strip_sums`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last
from vl2.ops.quantized_weight.kernel_rows import strip_sums
from vl2.ops.quantized_weight.triton_layout import step_of
from vl2.ops.quantized_weight.weight import QuantizedWeight


@dataclass(frozen=True, slots=True)
class Strip:
    """Outputs of a program, and words of a row taken at a time."""

    columns: int
    words: int
    num_warps: int


def multiply_strips(
    rows: torch.Tensor,
    weight: QuantizedWeight,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    strip: Strip,
    has_asm: bool,
) -> None:
    """out [M, N] = rows [M, K] Wᵀ + b; the matrix is read once for each row."""
    step = step_of(weight.scheme, weight.in_width)
    _linear[len(rows), triton.cdiv(weight.out_width, strip.columns)](
        rows, weight.codes, weight.scales, out if bias is None else bias, out, weight.out_width, weight.in_width,
        rows.stride(0), weight.codes.stride(-2), HAS_BIAS=bias is not None, BLOCK_N=strip.columns, BLOCK_W=strip.words,
        GROUP_STEPS=(weight.scheme.group_size or weight.in_width) // step, STEP=step, BITS=weight.scheme.bits,
        HAS_ASM=has_asm, num_warps=strip.num_warps, **chained(out.device),
    )  # fmt: skip


@triton.jit
def _linear(
    rows, codes, scales, bias, out, width, in_width, row_stride, row_words,
    HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, GROUP_STEPS: tl.constexpr, STEP: tl.constexpr,
    BITS: tl.constexpr, HAS_ASM: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_last(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = column < width
    total = strip_sums(
        codes + column.to(tl.int64) * row_words, scales + column, is_column, width, rows + row * row_stride, in_width,
        BLOCK_N, BLOCK_W, GROUP_STEPS, STEP, BITS, HAS_ASM,
    )  # fmt: skip
    if HAS_BIAS:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, total.to(out.dtype.element_ty), mask=is_column)
