"""What the kernels on quantised weights share: codes to numbers, and the product with one step of the inputs."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from vl2.ops.float8.kernel_common import from_float8
from vl2.ops.quantized_weight.weight import QuantizedWeight

# A pair of words in a register → two codes as floating point: 4 bits are put into the mantissa of 128 (bfloat16) or
# 1024 (float16), where a step is 1, and 136 or 1032 are taken away. All of it is exact.
_PLANE = """{{ .reg .b32 t, one, offset; mov.b32 one, {one}; mov.b32 offset, {offset}; shr.b32 t, $1, {shift};
lop3.b32 t, t, 0x000f000f, {exponent}, 0xea; fma.rn.{type} $0, t, one, offset; }}"""
_BFLOAT16 = dict(one="0x3f803f80", offset="0xc308c308", exponent="0x43004300", type="bf16x2")
_FLOAT16 = dict(one="0x3c003c00", offset="0xe408e408", exponent="0x64006400", type="f16x2")
BFLOAT16_0 = tl.constexpr(_PLANE.format(shift=0, **_BFLOAT16))
BFLOAT16_1 = tl.constexpr(_PLANE.format(shift=4, **_BFLOAT16))
BFLOAT16_2 = tl.constexpr(_PLANE.format(shift=8, **_BFLOAT16))
BFLOAT16_3 = tl.constexpr(_PLANE.format(shift=12, **_BFLOAT16))
FLOAT16_0 = tl.constexpr(_PLANE.format(shift=0, **_FLOAT16))
FLOAT16_1 = tl.constexpr(_PLANE.format(shift=4, **_FLOAT16))
FLOAT16_2 = tl.constexpr(_PLANE.format(shift=8, **_FLOAT16))
FLOAT16_3 = tl.constexpr(_PLANE.format(shift=12, **_FLOAT16))


@functools.cache
def has_asm(device: torch.device) -> bool:
    """bfloat16 pairs are multiplied and added from sm_80 on; the interpreter takes no assembly."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


LINE = 128
"""Bytes that the card's cache holds together."""


@triton.jit
def prefetch(codes, first, end, LINES: tl.constexpr):
    """Have the card's cache fetch the codes from `first` to before `end`, at most LINES lines: memory is idle while
    small kernels wait for each other. Only where there is assembly."""
    WIDTH: tl.constexpr = 128 * 8 // codes.dtype.element_ty.primitive_bitwidth
    at = first + tl.arange(0, LINES) * WIDTH
    address = (codes + tl.where(at < end, at, first)).to(tl.int64)
    fetch: tl.constexpr = "prefetch.global.L2 [$1]; mov.b32 $0, 0;"
    tl.inline_asm_elementwise(fetch, "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1)


def lines_of_share(weight: QuantizedWeight, num_shares: int) -> int:
    """Lines of the cache that one of so many parts of a matrix has, at most; a power of two."""
    num_bytes = weight.out_width * weight.codes.stride(-2) * weight.codes.element_size()
    return triton.next_power_of_2(triton.cdiv(num_bytes, num_shares * LINE))


@triton.jit
def plane(words, PLANE: tl.constexpr, BITS: tl.constexpr, dtype: tl.constexpr, HAS_ASM: tl.constexpr):
    """Codes of a tile of words (`triton_layout`) as numbers; of 4-bit ones, the PLANE-th of each word."""
    if words.dtype == tl.float8e4nv:
        numbers = from_float8(words, dtype)
    else:
        numbers = _integers(words, PLANE, BITS, dtype, HAS_ASM)
    return numbers


@triton.jit
def _integers(words, PLANE: tl.constexpr, BITS: tl.constexpr, dtype: tl.constexpr, HAS_ASM: tl.constexpr):
    if BITS == 8:
        return words.to(tl.float32).to(dtype)
    if HAS_ASM and dtype == tl.bfloat16:
        if PLANE == 0:
            return tl.inline_asm_elementwise(BFLOAT16_0, "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2)
        if PLANE == 1:
            return tl.inline_asm_elementwise(BFLOAT16_1, "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2)
        if PLANE == 2:
            return tl.inline_asm_elementwise(BFLOAT16_2, "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2)
        return tl.inline_asm_elementwise(BFLOAT16_3, "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2)
    if HAS_ASM and dtype == tl.float16:
        if PLANE == 0:
            return tl.inline_asm_elementwise(FLOAT16_0, "=r,r", [words], dtype=tl.float16, is_pure=True, pack=2)
        if PLANE == 1:
            return tl.inline_asm_elementwise(FLOAT16_1, "=r,r", [words], dtype=tl.float16, is_pure=True, pack=2)
        if PLANE == 2:
            return tl.inline_asm_elementwise(FLOAT16_2, "=r,r", [words], dtype=tl.float16, is_pure=True, pack=2)
        return tl.inline_asm_elementwise(FLOAT16_3, "=r,r", [words], dtype=tl.float16, is_pure=True, pack=2)
    return (((words >> (4 * PLANE)) & 0xF).to(tl.float32) - 8.0).to(dtype)


@triton.jit
def times(x, y, HAS_ASM: tl.constexpr):
    """x · y, rounded; the interpreter would multiply the bits of bfloat16."""
    return x * y if HAS_ASM else (x.to(tl.float32) * y.to(tl.float32)).to(x.dtype)


@triton.jit
def add_step(
    total, words, scale, inputs_at, is_row, WORDS: tl.constexpr, BITS: tl.constexpr, SCALES_FIRST: tl.constexpr,
    HAS_ASM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total [N, M] + the weights of one step (words [N, WORDS], scale [N]) times its inputs, at [WORDS, M] addresses.

    Few rows: scales go onto the sum, in float32. Many: into the weights, so that all products are one chain.
    """
    dtype = inputs_at.dtype.element_ty
    PLANES: tl.constexpr = 4 if BITS == 4 else 1
    if SCALES_FIRST:
        for p in tl.static_range(PLANES):
            inputs = tl.load(inputs_at + p * WORDS, mask=is_row[None, :], other=0.0)
            weights = times(plane(words, p, BITS, dtype, HAS_ASM), scale.to(dtype)[:, None], HAS_ASM)
            total = tl.dot(weights, inputs, total, input_precision=PRECISION)
        return total
    part = tl.zeros_like(total)
    for p in tl.static_range(PLANES):
        inputs = tl.load(inputs_at + p * WORDS, mask=is_row[None, :], other=0.0)
        part = tl.dot(plane(words, p, BITS, dtype, HAS_ASM), inputs, part, input_precision=PRECISION)
    return total + part * scale.to(tl.float32)[:, None]


@triton.jit
def add_steps(
    total, words, scale, inputs_at, is_input, WORDS: tl.constexpr, BITS: tl.constexpr, HAS_ASM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """total [S, N, M] + the weights of S steps (words [S, N, WORDS], scale [S, N]) times their inputs, at [S, WORDS, M]
    addresses. With S warps each has a step of its own: none waits for others, as products of whole tiles have it.
    """
    PLANES: tl.constexpr = 4 if BITS == 4 else 1
    part = tl.zeros_like(total)
    for p in tl.static_range(PLANES):
        inputs = tl.load(inputs_at + p * WORDS, mask=is_input, other=0.0)
        numbers = plane(words, p, BITS, inputs.dtype, HAS_ASM)
        part = tl.dot(numbers, inputs, part, input_precision=PRECISION)
    return total + part * scale.to(tl.float32)[:, :, None]
