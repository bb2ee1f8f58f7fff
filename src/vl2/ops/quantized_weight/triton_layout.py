"""The layout that the Triton kernels read.

Four 4-bit codes are an int16 word, those that are a quarter of a group apart: word j of a group of 128 inputs holds the
inputs j, j + 32, j + 64 and j + 96, from the lowest bits on. So shifting and masking a tile of words gives four tiles
of neighbouring inputs (`kernel_common.plane`), and no value moves between threads. 8-bit codes are an int8 or a float8
each. Scales are transposed, [G, N], so that those of neighbouring outputs lie side by side.
"""

from __future__ import annotations

import torch

from vl2.core.quantization import WeightScheme
from vl2.ops.float8.support import has_float8
from vl2.ops.quantized_weight.codes import FLOAT8_SPREAD, dequantize_codes, draw_codes, spread
from vl2.ops.quantized_weight.weight import QuantizedWeight
from vl2.ops.saturate import FLOAT8, to_dtype

STEP = 128
"""Inputs that kernels take at a time where no group says less."""
MIN_GROUP = 64
"""A quarter of it is the least that a matrix product takes."""
DRAWN_ROWS = 8192


def step_of(scheme: WeightScheme, in_width: int) -> int:
    """Inputs that kernels take at a time."""
    if scheme.group_size is not None:
        return min(scheme.group_size, STEP)
    return STEP if in_width % STEP == 0 else MIN_GROUP


def holds(scheme: WeightScheme, out_width: int, in_width: int) -> bool:
    """`QuantizedLayout.holds`. cuBLAS multiplies float8 matrices whose widths are multiples of 16."""
    step, group = step_of(scheme, in_width), scheme.group_size or in_width
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_able = not scheme.is_float or (has_float8(device) and out_width % 16 == 0)
    return is_able and scheme.bits in (4, 8) and step >= MIN_GROUP and in_width % group == 0 and group % step == 0


def empty(
    shape: tuple[int, ...], scheme: WeightScheme, dtype: torch.dtype, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """`QuantizedLayout.empty`."""
    *stack, out_width, in_width = shape
    words = (in_width // 4, torch.int16) if scheme.bits == 4 else (in_width, FLOAT8 if scheme.is_float else torch.int8)
    codes = torch.empty(*stack, out_width, words[0], dtype=words[1], device=device)
    dtype = torch.float32 if scheme.is_float else dtype
    return codes, torch.empty(*stack, scheme.num_groups(in_width), out_width, dtype=dtype, device=device)


def store(weight: QuantizedWeight, codes: torch.Tensor, scales: torch.Tensor) -> None:
    """`QuantizedLayout.store`."""
    codes = codes.to(weight.codes.device)
    if weight.scheme.bits == 4:
        step = step_of(weight.scheme, weight.in_width)
        nibbles = (codes + 8).unflatten(-1, (-1, 4, step // 4)).to(torch.int32)
        shifts = torch.tensor([0, 4, 8, 12], dtype=torch.int32, device=codes.device)
        codes = (nibbles << shifts[:, None]).sum(-2, dtype=torch.int32).flatten(-2).to(torch.int16)
    weight.codes.copy_(codes)
    weight.scales.copy_(scales.T)


def load_codes(weight: QuantizedWeight) -> torch.Tensor:
    """[(E,) N, K] int8 or float8."""
    if weight.scheme.bits == 8:
        return weight.codes
    step = step_of(weight.scheme, weight.in_width)
    words = weight.codes.to(torch.int32).unflatten(-1, (-1, 1, step // 4))
    shifts = torch.tensor([0, 4, 8, 12], dtype=torch.int32, device=words.device)
    return ((words >> shifts[:, None] & 0xF) - 8).flatten(-3).to(torch.int8)


def draw(weight: QuantizedWeight, std: float, generator: torch.Generator) -> None:
    """`QuantizedLayout.draw`."""
    if weight.scheme.is_float:  # some of its bits are no numbers
        for matrix in weight.codes.flatten(0, -2).split(DRAWN_ROWS):
            drawn = torch.empty(matrix.shape, device=matrix.device).normal_(0.0, FLOAT8_SPREAD, generator=generator)
            matrix.copy_(to_dtype(drawn, FLOAT8))
        weight.scales.fill_(std / FLOAT8_SPREAD)
        return
    draw_codes(weight.codes, weight.scheme.bits, generator)
    weight.scales.fill_(std / spread(weight.scheme.bits))


def dequantize(weight: QuantizedWeight) -> torch.Tensor:
    """`QuantizedLayout.dequantize`."""
    return dequantize_codes(load_codes(weight), weight.scales.transpose(-1, -2))
