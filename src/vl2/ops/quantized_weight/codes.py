"""Codes of weights, integers or float8: rounding to them, packing them as checkpoints do, and what they stand for.

Packed as compressed-tensors' `pack-quantized` has it: code + 2^(bits - 1), the first input in an int32's lowest bits.
"""

from __future__ import annotations

import math

import torch

from vl2.core.quantization import WeightScheme
from vl2.ops.saturate import FLOAT8, FLOAT8_MAX, to_dtype


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """codes [..., K] int8 → [..., K · bits / 32] int32."""
    unsigned = (codes + (1 << (bits - 1))).view(torch.uint8)  # int8 wraps around, which is what 8 bits need
    if bits == 4:
        unsigned = unsigned[..., 0::2] | (unsigned[..., 1::2] << 4)
    return unsigned.contiguous().view(torch.int32)


def unpack_codes(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """packed [..., K · bits / 32] int32 → [..., K] int8."""
    unsigned = packed.contiguous().view(torch.uint8)
    if bits == 4:
        unsigned = torch.stack((unsigned & 0xF, unsigned >> 4), -1).flatten(-2)
    return unsigned.view(torch.int8) - (1 << (bits - 1)) if bits == 4 else (unsigned ^ 0x80).view(torch.int8)


FLOAT8_SPREAD = FLOAT8_MAX / 4
"""Standard deviation of drawn float8 codes: of normal numbers, one in 16,000 is cut off."""


def dequantize_codes(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """codes [..., N, K] int8 or float8, scales [..., N, G] → [..., N, K], multiplied in the scales' dtype."""
    grouped = codes.unflatten(-1, (scales.shape[-1], -1))
    return grouped.to(scales.dtype).mul_(scales.unsqueeze(-1)).flatten(-2)


def draw_codes(codes: torch.Tensor, bits: int, generator: torch.Generator) -> None:
    """Fill `codes` with random ones. The lowest code, which has no opposite, is 0 instead: were the mean not 0, all
    outputs of a matrix would have a part in common, and after some layers all tokens would choose the same experts.

    codes  4 bits: any integers, of whose nibbles 8 stands for 0; 8 bits: int8
    """
    drawn = codes.view(torch.uint8).random_(0, 256, generator=generator)
    if bits == 8:
        codes.masked_fill_(codes == -128, 0)
        return
    for nibble, zero in ((0x0F, 0x08), (0xF0, 0x80)):
        drawn |= ((drawn & nibble) == 0).to(torch.uint8).mul_(zero)


def spread(bits: int) -> float:
    """Standard deviation of drawn codes."""
    highest = (1 << (bits - 1)) - 1
    return math.sqrt(highest * (highest + 1) * (2 * highest + 1) / 3 / (1 << bits))


def round_to_codes(weight: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """weight [..., N, K], scales [..., N, G] → the nearest codes [..., N, K] int8."""
    grouped = weight.float().unflatten(-1, (scales.shape[-1], -1))
    limit = 1 << (bits - 1)
    return (grouped / scales.float().unsqueeze(-1)).round_().clamp_(-limit, limit - 1).flatten(-2).to(torch.int8)


def fit_scales(weight: torch.Tensor, scheme: WeightScheme, dtype: torch.dtype) -> torch.Tensor:
    """Scales with which the largest weight of a group is the last code: [..., N, K] → [..., N, G] `dtype`.

    A group of zeros has the scale 1. The divisor is half the range, as compressed-tensors takes it: the largest
    positive weight may fall half a step short. Of float8 it is the largest number.
    """
    groups = scheme.num_groups(weight.shape[-1])
    largest = weight.float().unflatten(-1, (groups, -1)).abs().amax(-1)
    scales = (largest / (FLOAT8_MAX if scheme.is_float else (2**scheme.bits - 1) / 2)).to(dtype)
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def round_to_nearest(
    weight: torch.Tensor, scheme: WeightScheme, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes [..., N, K] int8 or float8, scales [..., N, G] `dtype`, of float8 float32) of [..., N, K]."""
    if scheme.is_float:
        scales = fit_scales(weight, scheme, torch.float32)
        return to_dtype(weight.float() / scales, FLOAT8), scales
    scales = fit_scales(weight, scheme, dtype)
    return round_to_codes(weight, scales, scheme.bits), scales
