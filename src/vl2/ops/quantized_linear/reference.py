"""Products with a quantised matrix, in torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vl2.ops.quantized_weight import torch_layout
from vl2.ops.quantized_weight.weight import QuantizedWeight
from vl2.ops.rows import RowRounding, pad_rows
from vl2.ops.saturate import saturate, to_dtype

PACKED_ROWS = 40
"""Up to so many rows PyTorch's packed kernels win, which take their time for each row; beyond, the matrix is written
out in 16 bits, as often as it is used."""
LOGITS_AT_ONCE = 8192


def quantized_linear(
    x: torch.Tensor,
    weight: QuantizedWeight,
    bias: torch.Tensor | None = None,
    rounding: RowRounding = RowRounding(),
) -> torch.Tensor:
    """`Backend.quantized_linear` (ops/backend.py)."""
    rows = x.flatten(0, -2)
    if len(rows) <= PACKED_ROWS or rounding.is_exact:
        out = torch_layout.multiply(rows, weight)
        out = out if bias is None else to_dtype(out.float() + bias, out.dtype)
    else:
        padded = pad_rows(rows, rounding.up(len(rows)))
        out = saturate(F.linear(padded, torch_layout.dequantize(weight), bias))[: len(rows)]
    return out.view(*x.shape[:-1], weight.out_width)


def quantized_linear_both(
    x: torch.Tensor, first: QuantizedWeight, second: QuantizedWeight, rounding: RowRounding = RowRounding()
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.quantized_linear_both` (ops/backend.py)."""
    return quantized_linear(x, first, None, rounding), quantized_linear(x, second, None, rounding)


def quantized_logits(hidden: torch.Tensor, weight: QuantizedWeight, is_exact: bool = True) -> torch.Tensor:
    """`Backend.quantized_logits` (ops/backend.py)."""
    rows = hidden.float()
    if len(rows) <= PACKED_ROWS or is_exact:
        return torch_layout.multiply(rows, weight)
    out = torch.empty(len(rows), weight.out_width)
    for start in range(0, weight.out_width, LOGITS_AT_ONCE):
        count = min(LOGITS_AT_ONCE, weight.out_width - start)
        out[:, start : start + count] = F.linear(rows, torch_layout.dequantize(weight.rows(start, count)))
    return out
