"""Few rows times a quantised matrix, without matrix products: a program takes a strip of outputs and all of its inputs
at once, so that as many bytes as possible are on their way. Tensor cores would compute 16 rows where there is one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vl2.ops.quantized_weight.kernel_common import plane


@triton.jit
def strip_sums(
    words_at, scales_at, is_column, scale_stride, inputs, in_width,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, GROUP_STEPS: tl.constexpr, STEP: tl.constexpr, BITS: tl.constexpr,
    HAS_ASM: tl.constexpr,
):  # fmt: skip
    """[BLOCK_N] float32: the strip at `words_at` [N] with scales at `scales_at` [N] times the row at `inputs`.

    BLOCK_W words are taken at a time; scales of the next group lie `scale_stride` further.
    """
    dtype = inputs.dtype.element_ty
    PLANES: tl.constexpr = 4 if BITS == 4 else 1
    WORDS: tl.constexpr = STEP // PLANES
    STEPS: tl.constexpr = BLOCK_W // WORDS
    total = tl.zeros((BLOCK_N,), tl.float32)
    at, steps = tl.arange(0, BLOCK_W), tl.arange(0, STEPS)
    first_input = at // WORDS * STEP + at % WORDS
    for start in range(0, in_width // PLANES, BLOCK_W):
        is_word = start + at < in_width // PLANES
        words = tl.load(
            words_at[:, None] + (start + at)[None, :], mask=is_column[:, None] & is_word[None, :], other=0.0
        )
        products = tl.zeros((BLOCK_N, BLOCK_W), tl.float32)
        for p in tl.static_range(PLANES):
            x = tl.load(inputs + start * PLANES + first_input + p * WORDS, mask=is_word, other=0.0).to(tl.float32)
            products += plane(words, p, BITS, dtype, HAS_ASM).to(tl.float32) * x[None, :]
        sums = tl.sum(tl.reshape(products, (BLOCK_N, STEPS, WORDS)), 2)
        step = start // WORDS + steps
        has_scale = is_column[:, None] & (step < in_width // STEP)[None, :]
        scale = tl.load(scales_at[:, None] + (step // GROUP_STEPS * scale_stride)[None, :], mask=has_scale, other=0.0)
        total += tl.sum(sums * scale.to(tl.float32), 1)
    return total
