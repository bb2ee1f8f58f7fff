"""float8 (e4m3) to wider numbers, for kernels that read it from weights or from the KV cache."""

from __future__ import annotations

import triton
import triton.language as tl

# Four float8 in a register → two pairs of bfloat16: each byte becomes the upper half of 16 bits, its exponent and
# mantissa are moved to where bfloat16 has them, and 2¹²⁰ makes up for the exponents' different zero. It is exact.
FLOAT8_PAIRS = tl.constexpr("""{ .reg .b32 t, m, up, none; mov.b32 up, 0x7b807b80; mov.b32 none, 0x80008000;
prmt.b32 t, $2, 0, 0x1404; shr.b32 m, t, 4; and.b32 m, m, 0x07f007f0; lop3.b32 t, t, 0x80008000, m, 0xea;
fma.rn.bf16x2 $0, t, up, none;
prmt.b32 t, $2, 0, 0x3424; shr.b32 m, t, 4; and.b32 m, m, 0x07f007f0; lop3.b32 t, t, 0x80008000, m, 0xea;
fma.rn.bf16x2 $1, t, up, none; }""")
# Four float8 in a word → float32, by way of float16, which holds each of them. Exact.
FLOAT8_FOUR = tl.constexpr("""{ .reg .b16 l, h, a, b; .reg .b32 t; mov.b32 {l, h}, $4;
cvt.rn.f16x2.e4m3x2 t, l; mov.b32 {a, b}, t; cvt.f32.f16 $0, a; cvt.f32.f16 $1, b;
cvt.rn.f16x2.e4m3x2 t, h; mov.b32 {a, b}, t; cvt.f32.f16 $2, a; cvt.f32.f16 $3, b; }""")
HAS_ASM = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def from_float8(codes, dtype: tl.constexpr):
    """Exact. Other numbers than float8 are `dtype` already and stay as they are."""
    if codes.dtype == tl.float8e4nv and HAS_ASM and dtype == tl.bfloat16:
        numbers = tl.inline_asm_elementwise(FLOAT8_PAIRS, "=r,=r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4)
    else:
        numbers = codes.to(dtype)
    return numbers


@triton.jit
def four_from_float8(words):
    """Four tensors of float32: the numbers in the lowest bytes of int32, in the next ones, ... Exact; from sm_89 on."""
    if HAS_ASM:
        return tl.inline_asm_elementwise(
            FLOAT8_FOUR, "=f,=f,=f,=f,r", [words], dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True, pack=1,
        )  # fmt: skip
    return _byte(words, 0), _byte(words, 1), _byte(words, 2), _byte(words, 3)


@triton.jit
def _byte(words, INDEX: tl.constexpr):
    return ((words >> (8 * INDEX)) & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float32)
