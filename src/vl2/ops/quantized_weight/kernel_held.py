"""Products of weights in 4 bits or float8 with up to 8 rows, straight from registers, by way of no shared memory.

A program asks for all codes of its outputs at once, each thread for 8 neighbouring words of a row, and tensor cores
take them from the registers that they arrive in. A product wants 2 here and 2 there, but which inputs those are is all
the same to a sum, if the rows of x are read in the same order. Each warp has steps of its own, for all outputs, and
sums are brought together once.

Outputs come in sixteens [Q, 2, 8]: eight of one half and eight of the other, of gate and of up for instance. A step is
32 words of a row, or 16: 128 inputs in 4 bits, or 64; 32 in float8.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vl2.ops.quantized_weight.kernel_common import has_asm, plane
from vl2.ops.quantized_weight.triton_layout import step_of
from vl2.ops.quantized_weight.weight import QuantizedWeight

ROWS = 8
"""Of x: what a product of tensor cores takes at least."""
FLOAT8_WORDS = 32
"""Of a step: four threads have 8 of them each, which is what a product wants of a row."""


def held_form(weight: QuantizedWeight, most_words: int) -> dict[str, int | bool]:
    """The constants of a kernel that holds so many words of each output at once."""
    planes = 4 if weight.scheme.bits == 4 else 1
    words = step_of(weight.scheme, weight.in_width) // 4 if planes == 4 else FLOAT8_WORDS
    step = words * planes
    num_steps = weight.in_width // step
    return dict(
        GROUP_STEPS=(weight.scheme.group_size or weight.in_width) // step, NUM_STEPS=num_steps, WORDS=words,
        PLANES=planes, BLOCK_S=min(most_words // words, triton.next_power_of_2(num_steps)),
        HAS_ASM=has_asm(weight.codes.device),
    )  # fmt: skip


@triton.jit
def row_of(sixteen, half, r, IS_PAIR: tl.constexpr):
    """Which output of a program; where halves are those of two matrices, which one of either."""
    return sixteen * 8 + r if IS_PAIR else sixteen * 16 + half * 8 + r


@triton.jit
def load_words(
    codes, limit, apart, first, num_steps, row_words, BLOCK_N: tl.constexpr, IS_PAIR: tl.constexpr,
    WORDS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """words [N / 16, 2, S, 8, W] of the steps from `first` on; zero from the output `limit` on.

    codes  where the program's first row begins; that of the other matrix is `apart` rows further
    """
    sixteen, half = tl.arange(0, BLOCK_N // 16)[:, None, None, None, None], tl.arange(0, 2)[None, :, None, None, None]
    step = first + tl.arange(0, BLOCK_S)[None, None, :, None, None]
    r, j = tl.arange(0, 8)[None, None, None, :, None], tl.arange(0, WORDS)[None, None, None, None, :]
    row = row_of(sixteen, half, r, IS_PAIR)
    at = codes + ((half * apart + row) * row_words + step * WORDS + j)
    # A hint to the compiler, false but for the last axis, from which alone it forms vectors: in this order threads take
    # the axes, first words, then rows, then steps, which is theirs in a product.
    return tl.load(tl.max_contiguous(at, (1, 1, 2, 4, 8)), mask=(row < limit) & (step < num_steps), other=0.0)


@triton.jit
def load_scales(
    scales, limit, apart, first, num_steps: tl.constexpr, num_columns, GROUP_STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr, IS_PAIR: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """[S, N], as `load_words`; [1, N] if an output has one scale."""
    NUM_SCALES: tl.constexpr = BLOCK_S if num_steps > GROUP_STEPS else 1
    n, step = tl.arange(0, BLOCK_N)[None, :], first + tl.arange(0, NUM_SCALES)[:, None]
    half = n // 8 % 2
    row = row_of(n // 16, half, n % 8, IS_PAIR)
    at = scales + step // GROUP_STEPS * num_columns + half * apart + row
    return tl.load(at, mask=(row < limit) & (step < num_steps), other=0.0)


@triton.jit
def multiply_held(
    words, scale, rows_at, first, num_steps, BLOCK_N: tl.constexpr, WORDS: tl.constexpr, PLANES: tl.constexpr,
    BLOCK_S: tl.constexpr, HAS_ASM: tl.constexpr,
):  # fmt: skip
    """[N, 8] float32: what these steps add to the outputs of the rows at `rows_at` [8]."""
    FAR: tl.constexpr = WORDS // 16
    step, j = first + tl.arange(0, BLOCK_S)[:, None, None], tl.arange(0, WORDS)[None, None, :]
    total = tl.zeros((BLOCK_S, BLOCK_N, 8), tl.float32)
    BITS: tl.constexpr = 4 if PLANES == 4 else 8
    for p in tl.static_range(PLANES):
        at = rows_at[None, :, None] + (step * (PLANES * WORDS) + p * WORDS + j)
        inputs = tl.load(tl.max_contiguous(at, (2, 4, 8)), mask=step < num_steps, other=0.0)  # as `load_words`
        numbers = plane(words, p, BITS, inputs.dtype, HAS_ASM)
        if BITS == 4:
            numbers = numbers.reshape(BLOCK_N // 16, 2, BLOCK_S, 8, 4, FAR, 2, 2)
            numbers = tl.permute(numbers, (2, 0, 1, 3, 5, 6, 4, 7))
            inputs = tl.permute(inputs.reshape(BLOCK_S, 8, 4, FAR, 2, 2), (0, 3, 4, 2, 5, 1))
        else:  # of what was loaded in 8 bits a product wants 4 here and 4 there
            numbers = tl.permute(numbers.reshape(BLOCK_N // 16, 2, BLOCK_S, 8, 4, FAR, 4), (2, 0, 1, 3, 5, 4, 6))
            inputs = tl.permute(inputs.reshape(BLOCK_S, 8, 4, FAR, 4), (0, 3, 2, 4, 1))
        total = tl.dot(numbers.reshape(BLOCK_S, BLOCK_N, WORDS), inputs.reshape(BLOCK_S, WORDS, 8), total)
    if scale.shape[0] < BLOCK_S:
        return tl.sum(total, 0) * tl.sum(scale.to(tl.float32), 0)[:, None]
    return tl.sum(total * scale.to(tl.float32)[:, :, None], 0)


@triton.jit
def multiply_rest_held(
    total, codes, scales, limit, apart, rows_at, num_steps, row_words, num_columns, GROUP_STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr, IS_PAIR: tl.constexpr, WORDS: tl.constexpr, PLANES: tl.constexpr, BLOCK_S: tl.constexpr,
    HAS_ASM: tl.constexpr,
):  # fmt: skip
    """`total` [N, 8] float32 and what all steps after the first BLOCK_S add."""
    for first in range(BLOCK_S, num_steps, BLOCK_S):
        words = load_words(codes, limit, apart, first, num_steps, row_words, BLOCK_N, IS_PAIR, WORDS, BLOCK_S)
        scale = load_scales(scales, limit, apart, first, num_steps, num_columns, GROUP_STEPS, BLOCK_N, IS_PAIR, BLOCK_S)
        total += multiply_held(words, scale, rows_at, first, num_steps, BLOCK_N, WORDS, PLANES, BLOCK_S, HAS_ASM)
    return total
