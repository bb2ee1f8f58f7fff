"""Rows of activations in float8, for tensor cores that multiply it twice as fast as 16 bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last
from vl2.ops.float8.reference import SMALLEST
from vl2.ops.saturate import FLOAT8
from vl2.ops.saturate_kernel import FLOAT8_MAX, to_dtype

MAX_BLOCK = 4096


def round_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`round_rows` (ops/float8/reference.py); rows may be strided."""
    assert x.stride(1) == 1
    num_rows, width = x.shape
    codes = torch.empty(num_rows, width, dtype=FLOAT8, device=x.device)
    scales = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    block = min(MAX_BLOCK, triton.next_power_of_2(width))
    _round_rows[(num_rows,)](
        x, codes, scales, width, x.stride(0), LEAST=SMALLEST, BLOCK=block, num_warps=4 if block < MAX_BLOCK else 8,
        **chained(x.device),
    )  # fmt: skip
    return codes, scales


@triton.jit
def _round_rows(
    x, codes, scales, width, row_stride, LEAST: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr
):  # fmt: skip
    wait_for_last(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        own = tl.load(x + row * row_stride + start + columns, mask=start + columns < width, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(own))
    scale = tl.maximum(tl.max(largest, 0), LEAST) / FLOAT8_MAX
    tl.store(scales + row, scale)
    for start in range(0, width, BLOCK):
        is_own = start + columns < width
        own = tl.load(x + row * row_stride + start + columns, mask=is_own, other=0.0).to(tl.float32)
        tl.store(codes + row * width + start + columns, to_dtype(own / scale, codes.dtype.element_ty), mask=is_own)
