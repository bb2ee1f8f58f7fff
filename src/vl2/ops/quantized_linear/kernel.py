"""Products with a quantised matrix: x Wᵀ + b, the codes made into numbers on their way to the tensor cores.

Few rows are bound by the weight's bytes: a tile's inputs are shared out among `splits` programs, and the one that
finishes last adds their sums in order, so that the result does not depend on which that is. Many rows are bound by
arithmetic: scales go into the weights, and from `DEQUANTIZE_ROWS` on the matrix is written out once for cuBLAS. A
float8 matrix stays as it is: from `FLOAT8_ROWS` on the rows become float8 too, each with a scale of its own, and cuBLAS
multiplies both twice as fast as 16 bits. The weight is the left factor, whose numbers tensor cores take from registers,
just where the codes arrive.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from vl2.ops.attention.kernel import arrival_counters
from vl2.ops.chain import chained, wait_for_last
from vl2.ops.experts.kernel_common import precision
from vl2.ops.float8.kernel import round_rows
from vl2.ops.quantized_linear import kernel_few, kernel_held, kernel_logits
from vl2.ops.quantized_weight.kernel_common import add_step, has_asm, plane, times
from vl2.ops.quantized_weight.triton_layout import step_of
from vl2.ops.quantized_weight.weight import QuantizedWeight
from vl2.ops.rows import RowRounding
from vl2.ops.saturate import saturate
from vl2.ops.saturate import to_dtype as cast
from vl2.ops.saturate_kernel import to_dtype
from vl2.ops.single_row.kernel import HEAD_TILE, multiply_row
from vl2.ops.single_row.kernel_common import is_one_row


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows of x, outputs, and how many programs there should be at least (their inputs are split for it)."""

    block_m: int
    block_n: int
    min_programs: int
    scales_first: bool  # into the weights, before the product
    num_warps: int
    num_stages: int


FEW, SOME, MANY = (
    Tile(16, 64, 528, False, 2, 5),
    Tile(64, 64, 132, False, 4, 4),
    Tile(64, 128, 1, False, 4, 3),
)
FLOAT32 = Tile(16, 32, 1, False, 4, 2)
FEW_ROWS, SOME_ROWS, DEQUANTIZE_ROWS = 16, 128, 512
HELD_ROWS = range(2, 9)
"""So many rows are multiplied with codes of 4 bits or float8 that registers hold; of a single one plain arithmetic is
faster."""
FLOAT8_ROWS = 64
"""Above so many a float8 matrix is multiplied with float8 rows: then their rounding is paid for by arithmetic."""
MAX_SPLITS = 8


def choose_tile(num_rows: int, dtype: torch.dtype) -> Tile:
    if dtype == torch.float32:
        return FLOAT32
    return FEW if num_rows <= FEW_ROWS else SOME if num_rows <= SOME_ROWS else MANY


def quantized_linear(
    x: torch.Tensor,
    weight: QuantizedWeight,
    bias: torch.Tensor | None = None,
    rounding: RowRounding = RowRounding(),
) -> torch.Tensor:
    """`Backend.quantized_linear` (ops/backend.py)."""
    rows = x.flatten(0, -2)
    if _is_held(rows, weight):
        out = torch.empty(len(rows), weight.out_width, dtype=x.dtype, device=x.device)
        kernel_held.multiply_few(rows, bias, [(weight, out)])
        return out.view(*x.shape[:-1], weight.out_width)
    if is_one_row(x):
        return multiply_row(x, [weight], bias)[0]
    if weight.scheme.is_float and len(rows) > FLOAT8_ROWS and x.dtype != torch.float32:
        return multiply_float8(rows, weight, bias).view(*x.shape[:-1], weight.out_width)
    if len(rows) > DEQUANTIZE_ROWS:
        return saturate(F.linear(x, dequantize(weight, x.dtype), bias))
    out = torch.empty(len(rows), weight.out_width, dtype=x.dtype, device=x.device)
    if len(rows) <= kernel_few.ROWS and x.dtype != torch.float32:
        kernel_few.multiply_few(rows, bias, [(weight, out)], kernel_few.TILE)
    else:
        multiply(rows, weight, bias, out, choose_tile(len(rows), x.dtype))
    return out.view(*x.shape[:-1], weight.out_width)


def quantized_linear_both(
    x: torch.Tensor, first: QuantizedWeight, second: QuantizedWeight, rounding: RowRounding = RowRounding()
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.quantized_linear_both` (ops/backend.py): of few rows in one launch."""
    rows, is_alike = x.flatten(0, -2), first.scheme == second.scheme
    is_held = _is_held(rows, first)
    if is_alike and is_one_row(x) and not is_held:
        outs = multiply_row(x, [first, second])
        return outs[0], outs[1]
    if not is_alike or len(rows) > kernel_few.ROWS or x.dtype == torch.float32:
        return quantized_linear(x, first, None, rounding), quantized_linear(x, second, None, rounding)
    outs = [torch.empty(*x.shape[:-1], weight.out_width, dtype=x.dtype, device=x.device) for weight in (first, second)]
    pairs = zip((first, second), (out.flatten(0, -2) for out in outs), strict=True)
    if is_held:
        kernel_held.multiply_few(rows, None, list(pairs))
    else:
        kernel_few.multiply_few(rows, None, list(pairs), kernel_few.TILE)
    return outs[0], outs[1]


def _is_held(rows: torch.Tensor, weight: QuantizedWeight) -> bool:
    is_able = weight.scheme.bits == 4 or weight.scheme.is_float
    return len(rows) in HELD_ROWS and is_able and rows.dtype != torch.float32


def quantized_logits(hidden: torch.Tensor, weight: QuantizedWeight, is_exact: bool = True) -> torch.Tensor:
    """`Backend.quantized_logits` (ops/backend.py)."""
    if is_one_row(hidden):
        return multiply_row(hidden, [weight], tile=HEAD_TILE, out_dtype=torch.float32)[0]
    out = torch.empty(len(hidden), weight.out_width, dtype=torch.float32, device=hidden.device)
    if len(hidden) and kernel_logits.multiplies(weight, hidden.dtype):
        kernel_logits.multiply_logits(hidden, weight, out, kernel_logits.choose_tile(len(hidden)))
    elif len(hidden):  # scales stay float32, which those of many rows would not
        multiply(hidden, weight, None, out, choose_tile(min(len(hidden), SOME_ROWS), hidden.dtype))
    return out


def multiply(
    rows: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None, out: torch.Tensor, tile: Tile
) -> None:
    """out [M, N] = rows [M, K] Wᵀ + b."""
    num_rows, step = len(rows), step_of(weight.scheme, weight.in_width)
    tiles_m, tiles_n = triton.cdiv(num_rows, tile.block_m), triton.cdiv(weight.out_width, tile.block_n)
    steps = weight.in_width // step
    splits = 1
    while splits < MAX_SPLITS and tiles_m * tiles_n * splits < tile.min_programs and steps // splits >= 4:
        splits *= 2
    partial = torch.empty(splits, *out.shape, dtype=torch.float32, device=out.device) if splits > 1 else out
    _linear[(tiles_n, tiles_m, splits)](
        rows, weight.codes, weight.scales, out if bias is None else bias, out, partial, arrival_counters(out.device),
        num_rows, weight.codes.stride(-2), weight.out_width, rows.stride(0), steps, triton.cdiv(steps, splits),
        HAS_BIAS=bias is not None, GROUP_STEPS=(weight.scheme.group_size or weight.in_width) // step, STEP=step,
        BITS=weight.scheme.bits, SPLITS=splits, SCALES_FIRST=tile.scales_first, BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n, HAS_ASM=has_asm(out.device), PRECISION=precision(rows), num_warps=tile.num_warps,
        num_stages=tile.num_stages, **chained(out.device),
    )  # fmt: skip


def multiply_float8(rows: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """rows [M, K] 16 bits, rounded to float8 → [M, N] their dtype, by way of bfloat16. Sums are float32 throughout."""
    codes, scales = round_rows(rows)
    out = torch._scaled_mm(
        codes, weight.codes.t(), scales.unsqueeze(1), weight.scales, out_dtype=torch.bfloat16, use_fast_accum=False
    )
    return cast(out if bias is None else out + bias, rows.dtype)


def dequantize(weight: QuantizedWeight, dtype: torch.dtype) -> torch.Tensor:
    """A matrix, or a stack of them, as [(E,) N, K]."""
    step, stacked = step_of(weight.scheme, weight.in_width), weight.codes.shape[:-1]
    num_rows, block_r = stacked.numel(), 16
    out = torch.empty(*stacked, weight.in_width, dtype=dtype, device=weight.codes.device)
    _dequantize[(triton.cdiv(num_rows, block_r), weight.in_width // step)](
        weight.codes, weight.scales, out, num_rows, weight.codes.stride(-2), weight.in_width, weight.out_width,
        weight.scales.shape[-2], GROUP_STEPS=(weight.scheme.group_size or weight.in_width) // step, STEP=step,
        BITS=weight.scheme.bits, BLOCK_R=block_r, HAS_ASM=has_asm(out.device), num_warps=2, **chained(out.device),
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["num_rows"])
def _linear(
    x, codes, scales, bias, out, partial, arrivals, num_rows, row_words, out_width, row_stride, num_steps, own_steps,
    HAS_BIAS: tl.constexpr, GROUP_STEPS: tl.constexpr, STEP: tl.constexpr, BITS: tl.constexpr, SPLITS: tl.constexpr,
    SCALES_FIRST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HAS_ASM: tl.constexpr,
    PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_last(CHAINED)
    PLANES: tl.constexpr = 4 if BITS == 4 else 1
    WORDS: tl.constexpr = STEP // PLANES
    tile_n, tile_m, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    column, row = tile_n * BLOCK_N + tl.arange(0, BLOCK_N), tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    is_column, is_row = column < out_width, row < num_rows
    j = tl.arange(0, WORDS)
    words_at = codes + column.to(tl.int64)[:, None] * row_words + j[None, :]
    inputs_at = x + row.to(tl.int64)[None, :] * row_stride + j[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(split * own_steps, tl.minimum((split + 1) * own_steps, num_steps)):
        words = tl.load(words_at + step * WORDS, mask=is_column[:, None], other=0.0)
        scale = tl.load(scales + step // GROUP_STEPS * out_width + column, mask=is_column, other=0.0)
        total = add_step(
            total, words, scale, inputs_at + step * STEP, is_row, WORDS, BITS, SCALES_FIRST, HAS_ASM, PRECISION
        )
    at = row.to(tl.int64)[None, :] * out_width + column[:, None]
    inside = is_row[None, :] & is_column[:, None]
    if SPLITS > 1:
        size = num_rows.to(tl.int64) * out_width
        tl.store(partial + split * size + at, total, mask=inside)
        tl.debug_barrier()
        tile = tile_m * tl.num_programs(0) + tile_n
        is_last = tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == SPLITS - 1
        if not is_last:
            return
        total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for other in tl.static_range(SPLITS):
            total += tl.load(partial + other * size + at, mask=inside, other=0.0, cache_modifier=".cg")
        tl.store(arrivals + tile, 0)
    if HAS_BIAS:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[:, None]
    tl.store(out + at, to_dtype(total, out.dtype.element_ty), mask=inside)


@triton.jit
def _dequantize(
    codes, scales, out, num_rows, row_words, in_width, out_width, num_groups, GROUP_STEPS: tl.constexpr,
    STEP: tl.constexpr, BITS: tl.constexpr, BLOCK_R: tl.constexpr, HAS_ASM: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """A block of rows and one step a program; rows of all matrices of a stack are counted on."""
    wait_for_last(CHAINED)
    PLANES: tl.constexpr = 4 if BITS == 4 else 1
    WORDS: tl.constexpr = STEP // PLANES
    dtype = out.dtype.element_ty
    row, step = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R), tl.program_id(1)
    is_row, j = (row < num_rows)[:, None], tl.arange(0, WORDS)
    words = tl.load(codes + row[:, None] * row_words + step * WORDS + j[None, :], mask=is_row, other=0.0)
    group = row // out_width * num_groups + step // GROUP_STEPS
    scale = tl.load(scales + group * out_width + row % out_width, mask=row < num_rows, other=0.0)
    at = out + row[:, None] * in_width + step * STEP + j[None, :]
    for p in tl.static_range(PLANES):
        numbers = plane(words, p, BITS, dtype, HAS_ASM)
        if scale.dtype == tl.float32:
            numbers = to_dtype(numbers.to(tl.float32) * scale[:, None], dtype)
        else:
            numbers = times(numbers, scale.to(dtype)[:, None], HAS_ASM)
        tl.store(at + p * WORDS, numbers, mask=is_row)
