"""The layout of PyTorch's packed kernels on a CPU: 4 bits in groups, 8 bits by rows.

How the 4-bit kernel packs rows is its own affair and differs between processors, but rows in multiples of 64 may be
packed by themselves. It takes (scale, zero) pairs; zeros are 0 here.
"""

from __future__ import annotations

import functools

import torch

from vl2.core.quantization import WeightScheme
from vl2.ops.quantized_weight.codes import dequantize_codes, draw_codes, spread
from vl2.ops.quantized_weight.weight import QuantizedWeight
from vl2.ops.saturate import saturate

PACKED_TOGETHER = 64
GROUP_SIZES = (32, 64, 128, 256)


def holds(scheme: WeightScheme, out_width: int, in_width: int) -> bool:
    """`QuantizedLayout.holds`. No CPU multiplies float8: what it stands for is held in 16 or 32 bits."""
    if scheme.is_float:
        return False
    if scheme.bits == 8:
        return scheme.group_size is None
    group = scheme.group_size
    return scheme.bits == 4 and group in GROUP_SIZES and in_width % group == 0 and out_width % PACKED_TOGETHER == 0


def empty(
    shape: tuple[int, ...], scheme: WeightScheme, dtype: torch.dtype, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """`QuantizedLayout.empty`."""
    *stack, out_width, in_width = shape
    if scheme.bits == 8:
        scales = torch.empty(*stack, 1, out_width, dtype=dtype, device=device)
        return torch.empty(*stack, out_width, in_width, dtype=torch.int8, device=device), scales
    scales = torch.zeros(*stack, scheme.num_groups(in_width), out_width, 2, dtype=dtype, device=device)
    return torch.empty(*stack, out_width, in_width // 2, dtype=torch.uint8, device=device), scales


def store(weight: QuantizedWeight, codes: torch.Tensor, scales: torch.Tensor) -> None:
    """`QuantizedLayout.store`."""
    if weight.scheme.bits == 8:
        weight.codes.copy_(codes)
        weight.scales.copy_(scales.T)
    else:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int() + 8, 1)
        weight.codes.copy_(packed)
        weight.scales[..., 0].copy_(scales.T)


def multiply(rows: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """rows [M, K] Wᵀ → [M, N]; a row's bits do not depend on the others."""
    rows = rows.contiguous()
    if weight.scheme.bits == 8:
        return saturate(torch.ops.aten._weight_int8pack_mm(rows, weight.codes, weight.scales[0]))
    group = weight.scheme.group_size
    return saturate(torch.ops.aten._weight_int4pack_mm_for_cpu(rows, weight.codes, group, weight.scales))


def draw(weight: QuantizedWeight, std: float, generator: torch.Generator) -> None:
    """`QuantizedLayout.draw`."""
    draw_codes(weight.codes, weight.scheme.bits, generator)
    (weight.scales if weight.scheme.bits == 8 else weight.scales[..., 0]).fill_(std / spread(weight.scheme.bits))


def dequantize(weight: QuantizedWeight) -> torch.Tensor:
    """`QuantizedLayout.dequantize`."""
    if weight.scheme.bits == 8:
        return dequantize_codes(weight.codes, weight.scales.T)
    half = rows_together() // 2
    pairs = weight.codes.view(-1, weight.in_width, half).transpose(1, 2).contiguous()  # row j low, row j + half high
    codes = torch.empty(len(pairs), 2, half, weight.in_width, dtype=torch.uint8)
    torch.bitwise_and(pairs, 0xF, out=codes[:, 0])
    torch.bitwise_right_shift(pairs, 4, out=codes[:, 1])
    signed = codes.sub_(8).view(torch.int8).view(-1, weight.in_width)
    return dequantize_codes(signed, weight.scales[..., 0].T)


@functools.cache
def rows_together() -> int:
    """Rows that this processor's 4-bit kernel packs into one block, of which each byte holds one of either half."""
    codes = torch.zeros(PACKED_TOGETHER, 2, dtype=torch.int32)
    codes[:, 0] = torch.arange(PACKED_TOGETHER) // 16
    second = int(torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1).flatten()[0]) >> 4
    return 32 * second  # row 16: blocks of 32; row 32: of 64
