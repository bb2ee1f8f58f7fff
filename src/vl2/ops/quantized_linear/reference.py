"""Products with a quantised matrix, in torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vl2.ops.quantized_weight import torch_layout
from vl2.ops.quantized_weight.weight import QuantizedWeight
from vl2.ops.rows import RowRounding, pad_rows
from vl2.ops.saturate import saturate

PACKED_ROWS = 16
"""Up to so many rows PyTorch's packed kernels win, which take their time for each row; beyond, the matrix is written
out in 16 bits, as often as it is used."""


def quantized_linear(
    x: torch.Tensor,
    weight: QuantizedWeight,
    bias: torch.Tensor | None = None,
    *,
    rounding: RowRounding = RowRounding(),
) -> torch.Tensor:
    """`Backend.quantized_linear` (ops/backend.py)."""
    rows = x.flatten(0, -2)
    if len(rows) <= PACKED_ROWS:
        out = torch_layout.multiply(rows, weight)
        out = out if bias is None else saturate(out + bias)
    else:
        padded = pad_rows(rows, rounding.up(len(rows)))
        out = saturate(F.linear(padded, torch_layout.dequantize(weight), bias))[: len(rows)]
    return out.view(*x.shape[:-1], weight.out_width)
