"""float8 kernels on a GPU: are they right on the real shapes, how long do they take, how near is the floor?

    python bench/kernels_fp8.py [check] [time] [few] [tune]     (nothing named: check and time)

check  errors against float64 of the same rounded numbers, beside those of bfloat16 products
time   experts, linears and attention with a float8 cache beside their bfloat16 forms, in the same run
few    experts of up to 128 tokens with rounded rows (kernel_float8.py) beside those from codes, and linears; minutes
tune   other tiles than those of ops/quantized_*/kernel*.py and ops/attention/kernel.py
The floor is bytes over 3.0 TB/s or operations over 770 TFLOP/s (of float8 twice as many), whichever is more. Weights of
several layers are used in turn, so that the cache of the card does not hold them.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from kernels_attention import DEVICE, PREFILL, Case, MLACase, error, exact, line, make_batch, microseconds, report
from kernels_w4 import EXPERTS, FEW_LINEARS, draw_dense, multiply, routes, shown

from vl2.core.quantization import WeightScheme
from vl2.ops.attention import kernel as attention
from vl2.ops.experts import kernel as dense_experts
from vl2.ops.experts.kernel_common import Tile
from vl2.ops.experts.mixture import add_up
from vl2.ops.float8 import reference
from vl2.ops.float8.kernel import round_rows
from vl2.ops.quantized_experts import kernel as experts_kernel
from vl2.ops.quantized_experts import kernel_float8
from vl2.ops.quantized_experts.kernel_many import mix_many_float8
from vl2.ops.quantized_experts.weights import QuantizedExperts
from vl2.ops.quantized_linear import kernel as linear_kernel
from vl2.ops.quantized_weight import triton_layout
from vl2.ops.quantized_weight.weight import QuantizedWeight
from vl2.ops.saturate import FLOAT8

DTYPE, FP8 = torch.bfloat16, WeightScheme(8, None, is_float=True)
LINEARS = {
    "Small q": (3072, 2048),
    "Small kv_a": (576, 2048),
    "Small o": (2048, 2048),
    "Small dense gate-up": (21888, 2048),
    "Small dense down": (2048, 10944),
    "Tiny qkv": (3840, 1280),
}
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 8192)
ROWS = (1, 8, 32, 64, 128, 256, 1024, 8192)
LAYERS = 4


def draw(*shape: int) -> QuantizedWeight:
    """Random codes, with scales that differ from row to row."""
    weight = QuantizedWeight(*triton_layout.empty(shape, FP8, DTYPE, DEVICE), FP8, shape[-1])
    triton_layout.draw(weight, shape[-1] ** -0.5, torch.Generator(DEVICE).manual_seed(0))
    weight.scales.mul_(torch.empty_like(weight.scales).uniform_(0.5, 1.5))
    return weight


def draw_experts(name: str) -> QuantizedExperts:
    routed, shared, _, width, inner = EXPERTS[name]
    return QuantizedExperts(draw(routed + shared, 2 * inner, width), draw(routed + shared, width, inner), shared)


def rounded(x: torch.Tensor) -> torch.Tensor:
    codes, scales = round_rows(x)
    return codes.double() * scales.double().unsqueeze(1)


# ---- check


def check() -> None:
    report("all 256 codes", check_codes)
    for width in (1280, 1408, 2048, 10944):
        report(f"rows of {width}", check_rows, width)
    for label, (out_width, in_width) in LINEARS.items():
        for rows in (1, 7, 40, 64, 65, 300, 2000):
            report(f"{label}, {rows} rows", check_linear, out_width, in_width, rows)
    for name in EXPERTS:
        for tokens in (1, 5, 64, 128, 400, 3000):
            report(f"{name} experts, {tokens} tokens", check_experts, name, tokens)
    for name in ("Tiny", "grouped"):
        for label, shapes in (("decode", [(c, 1) for c in (1, 63, 65, 257, 1024, 2000)]), ("mixed", [(1500, 300)])):
            report(f"{name} attention {label}, float8 cache", check_heads, name, shapes)
    for label, shapes in (("decode", [(c, 1) for c in (1, 63, 65, 257, 1024)]), ("prefill", [(900, 150)])):
        report(f"Small MLA {label}, float8 cache", check_latent, shapes)


def check_codes() -> str:
    """By the kernels' own instructions; two codes are no numbers."""
    codes = torch.arange(256, device=DEVICE, dtype=torch.uint8).view(FLOAT8).expand(16, 256).contiguous()
    weight = QuantizedWeight(codes, torch.ones(1, 16, device=DEVICE), FP8, 256)
    found, expected = linear_kernel.dequantize(weight, DTYPE).float(), codes.float()
    return f"{int(((found != expected) & ~expected.isnan()).sum())} differ"


def check_rows(width: int) -> str:
    x = torch.randn(50, width, device=DEVICE, dtype=DTYPE)
    codes, scales = round_rows(x)
    expected, expected_scales = reference.round_rows(x)
    differ = float((codes.float() != expected.float()).float().mean())
    return f"{differ:.1e} of the codes differ, scales {error(scales, expected_scales.double()):.1e}"


def check_linear(out_width: int, in_width: int, rows: int) -> str:
    """Against the product of what the weight, and of many rows also the rows, stand for; then against exact rows."""
    weight, x = draw(out_width, in_width), torch.randn(rows, in_width, device=DEVICE, dtype=DTYPE)
    matrix = weight.codes.double() * weight.scales.double().T
    is_rounded = rows > linear_kernel.FLOAT8_ROWS
    expected = (rounded(x) if is_rounded else x.double()) @ matrix.T
    out, again = (linear_kernel.quantized_linear(x, weight) for _ in range(2))
    dense = F.linear(x, matrix.to(DTYPE))
    told = f"{error(out, expected):.2e} / {error(dense, x.double() @ matrix.T):.2e}"
    told += f"  rows rounded: {error(out, x.double() @ matrix.T):.2e}" if is_rounded else ""
    return told + ("" if torch.equal(out, again) else "  NOT REPEATABLE")


def check_experts(name: str, tokens: int) -> str:
    """Against rows rounded alike, where the last bit of a few inner numbers shows, about 1 %; then exact ones."""
    experts, (ids, weights, _) = draw_experts(name), routes(name, tokens)
    x = torch.randn(tokens, EXPERTS[name][3], device=DEVICE, dtype=DTYPE)
    all_ids, all_weights = experts.with_shared(ids, weights)
    is_many = experts_kernel.choose_tile(all_ids.numel(), len(experts.down.codes), DTYPE) is experts_kernel.MANY
    span = experts.down.in_width if is_many else kernel_float8.FEW.up_n
    expected = torch.zeros(2, tokens, x.shape[1], dtype=torch.float64, device=DEVICE)
    for expert in range(len(experts.down.codes)):
        token, choice = (all_ids == expert).nonzero(as_tuple=True)
        up, down = (w[expert].codes.double() * w[expert].scales.double().T for w in (experts.gate_up, experts.down))
        share = all_weights[token, choice].double()[:, None]
        for total, rows, around in ((expected[0], rounded(x), rounded), (expected[1], x.double(), torch.Tensor.double)):
            gates, ups = (rows[token] @ up.T).chunk(2, -1)
            hidden = [around(part) for part in (F.silu(gates) * ups).to(DTYPE).split(span, -1)]
            total.index_add_(0, token, torch.cat(hidden, -1) @ down.T * share)
    out, again = (add_up(experts_kernel.mix_quantized_experts(x, ids, weights, experts)) for _ in range(2))
    told = f"{error(out, expected[0]):.2e}  rows exact: {error(out, expected[1]):.2e}"
    return told + ("" if torch.equal(out, again) else "  NOT REPEATABLE")


def check_heads(name: str, shapes: list[tuple[int, int]]) -> str:
    heads, kv_heads, dim = {"Tiny": (10, 10, 128), "grouped": (16, 4, 128)}[name]
    batch, rows, pages = make_batch(shapes)
    q = torch.randn(rows, heads, dim, device=DEVICE, dtype=DTYPE)
    pool = torch.randn(2, pages, 16, kv_heads, dim, device=DEVICE).to(FLOAT8)
    out = attention.attend_heads(q, pool, batch, dim**-0.5)
    dense = attention.attend_heads(q, pool.to(DTYPE), batch, dim**-0.5)
    expected = exact(q, pool[0].double(), pool[1].double(), batch, dim**-0.5)
    return f"{error(out, expected):.2e} / {error(dense, expected):.2e}"


def check_latent(shapes: list[tuple[int, int]]) -> str:
    (arguments,) = MLACase("Small", shapes, copies=1, kv_dtype=FLOAT8).arguments
    wide = [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in arguments]
    dense = [x.to(DTYPE) if torch.is_tensor(x) and x.dtype == FLOAT8 else x for x in arguments]
    from vl2.ops import torch_backend
    from vl2.ops.attention.kernel_mla import attend_mla

    expected = torch_backend.attend_mla(*wide)
    return f"{error(attend_mla(*arguments), expected):.2e} / {error(attend_mla(*dense), expected):.2e}"


# ---- time


@functools.cache
def layers(name: str) -> tuple[list[QuantizedExperts], list]:
    return [draw_experts(name) for _ in range(LAYERS)], [draw_dense(name) for _ in range(2)]


def expert_calls(name: str, tokens: int, mix: Callable[..., torch.Tensor]) -> tuple[list[Callable[[], object]], int]:
    calls, distinct = [], 0
    for i in range(2 * LAYERS):
        ids, weights, number = routes(name, tokens)
        x = torch.randn(tokens, EXPERTS[name][3], device=DEVICE, dtype=DTYPE)
        calls.append(functools.partial(mix, x, ids, weights, layers(name)[0][i % LAYERS]))
        distinct += number
    return calls, distinct // len(calls)


def time_experts(name: str, tokens: int) -> str:
    _, shared, chosen, width, inner = EXPERTS[name]
    calls, distinct = expert_calls(name, tokens, experts_kernel.mix_quantized_experts)
    num_bytes, flops = distinct * 3 * width * inner + 4 * tokens * width, 6 * tokens * (chosen + shared) * width * inner
    dense_calls = []
    for i in range(4):
        ids, weights, _ = routes(name, tokens)
        x = torch.randn(tokens, width, device=DEVICE, dtype=DTYPE)
        dense_calls.append(functools.partial(dense_experts.mix_experts, x, ids, weights, layers(name)[1][i % 2]))
    return f"{line(calls, num_bytes, flops / 2)}; bfloat16 {microseconds(dense_calls):8.1f} µs"


def time_linear(label: str, rows: int) -> str:
    out_width, in_width = LINEARS[label]
    num_bytes = out_width * in_width + 2 * rows * (in_width + out_width)
    copies = max(2, min(32, int(4e8 / num_bytes)))
    x, weights = torch.randn(rows, in_width, device=DEVICE, dtype=DTYPE), [draw(*LINEARS[label]) for _ in range(copies)]
    dense = [torch.randn(out_width, in_width, device=DEVICE, dtype=DTYPE) for _ in range(max(2, copies // 2))]
    calls = [functools.partial(linear_kernel.quantized_linear, x, weight) for weight in weights]
    blas = microseconds([functools.partial(F.linear, x, matrix) for matrix in dense])
    others = ""
    if rows in (32, 64, 128):
        wide = microseconds([functools.partial(linear_kernel.multiply_float8, x, weight, None) for weight in weights])
        out = torch.empty(rows, out_width, device=DEVICE, dtype=DTYPE)
        some = [
            functools.partial(linear_kernel.multiply, x, weight, None, out, linear_kernel.SOME) for weight in weights
        ]
        others = f"; rows rounded {wide:8.1f}, from codes {microseconds(some):8.1f} µs"
    return f"{line(calls, num_bytes, rows * in_width * out_width)}; cuBLAS bfloat16 {blas:8.1f} µs{others}"


def time_cache(make: Callable[[torch.dtype], Case | MLACase]) -> str:
    return f"{make(FLOAT8).line()}; bfloat16 {make(DTYPE).line()[:11]}"


def time_all() -> None:
    for count in (1, 8, 32, 128):
        shapes = [(1024, 1)] * count
        report(f"Tiny decode, batch {count}", time_cache, lambda dtype, s=shapes: Case("Tiny", s, kv_dtype=dtype))
        report(f"Small MLA decode, batch {count}", time_cache, lambda d, s=shapes: MLACase("Small", s, kv_dtype=d))
    report("Tiny prefill 16 × 1,024", time_cache, lambda dtype: Case("Tiny", PREFILL, kv_dtype=dtype))
    report("Small MLA prefill 16 × 1,024", time_cache, lambda dtype: MLACase("Small", PREFILL, kv_dtype=dtype))
    for name in ("Tiny", "Small"):
        for tokens in TOKENS:
            report(f"{name} experts, {tokens} tokens", time_experts, name, tokens)
        layers.cache_clear()
        torch.cuda.empty_cache()
    for label in LINEARS:
        for rows in ROWS:
            report(f"{label}, {rows} rows", time_linear, label, rows)


# ---- tune

FEW_TILES = [
    kernel_float8.Tile(m, up_n, up_k, down_n, warps, stages)
    for m in (16, 32, 64)
    for up_n, up_k, down_n, warps, stages in (
        (64, 128, 64, 4, 3), (64, 128, 64, 4, 5), (64, 128, 128, 4, 4), (64, 256, 64, 4, 3), (128, 128, 128, 8, 4),
    )
]  # fmt: skip
MANY_TILES = [
    Tile(m, n, 128, down_n, 128, warps, stages)
    for m, n, down_n in ((64, 64, 128), (64, 128, 128), (128, 64, 128), (128, 128, 128), (128, 128, 256))
    for warps, stages in ((4, 3), (8, 3), (8, 4))
]
DECODE_TILES = [
    dict(block_n=n, num_warps=warps, num_stages=stages, programs=programs)
    for n, warps in ((16, 2), (32, 2), (32, 4), (64, 4), (64, 8))
    for stages in (2, 3, 4)
    for programs in (528, 1056, 2112)
]


def few() -> None:
    mix = functools.partial(experts_kernel.mix_with_tile, tile=experts_kernel.FEW)
    report("Small experts, (1, 2, 4, 8, 32, 128) tokens, from codes", tune_experts, (1, 2, 4, 8, 32, 128), mix)
    for tile in FEW_TILES:
        counts = {16: (1, 2, 4, 8, 32, 128), 32: (32, 64, 128), 64: (64, 128, 256)}[tile.block_m]
        mix = functools.partial(kernel_float8.mix_few_float8, tile=tile)
        report(f"Small experts, {counts} tokens, {shown(tile)}", tune_experts, counts, mix)
    for label in ("Small q", "Small kv_a", "Small o"):
        for rows in (1, 8):
            report(f"{label}, {rows} rows, rounded, cuBLAS", tune_rounded, label, rows)
        for tile in (linear_kernel.FEW, *FEW_LINEARS):
            report(f"{label}, 1 and 8 rows, {shown(tile)}", tune_linear, label, tile)


def tune() -> None:
    for tile in MANY_TILES:
        counts = (512, 1024, 8192)
        report(
            f"Small experts, {counts} tokens, {shown(tile)}",
            tune_experts,
            counts,
            functools.partial(mix_many_float8, tile=tile),
        )
    cases = [Case("Tiny", [(1024, 1)] * count, kv_dtype=FLOAT8) for count in (1, 32, 128)]
    usual = attention.TILES["decode_single"]
    for change in DECODE_TILES:
        attention.TILES["decode_single"] = dataclasses.replace(usual, **change)
        report(
            f"Tiny decode, float8 cache, 1 | 32 | 128, {change}", lambda: " | ".join(case.line()[:11] for case in cases)
        )


def tune_experts(counts: tuple[int, ...], mix: Callable[..., torch.Tensor]) -> str:
    return " | ".join(f"{microseconds(expert_calls('Small', tokens, mix)[0]):8.1f}" for tokens in counts)


def tune_rounded(label: str, rows: int) -> str:
    """Rounding by itself, and the product with it."""
    weights, x = (
        [draw(*LINEARS[label]) for _ in range(32)],
        torch.randn(rows, LINEARS[label][1], device=DEVICE).to(DTYPE),
    )
    rounding = microseconds([functools.partial(round_rows, x) for _ in weights])
    both = microseconds([functools.partial(linear_kernel.multiply_float8, x, weight, None) for weight in weights])
    return f"{rounding:8.1f} | {both:8.1f}"


def tune_linear(label: str, tile: object) -> str:
    weights, times = [draw(*LINEARS[label]) for _ in range(32)], []
    for rows in (1, 8):
        x, out = (torch.randn(rows, width, device=DEVICE, dtype=DTYPE) for width in reversed(LINEARS[label]))
        times.append(microseconds([functools.partial(multiply, weight, x, None, out, tile) for weight in weights]))
    return " | ".join(f"{us:8.1f}" for us in times)


if __name__ == "__main__":
    torch.manual_seed(0)
    print(torch.cuda.get_device_name(), torch.__version__)
    modes = sys.argv[1:] or ["check", "time"]
    for mode in ("check", "time", "few", "tune"):
        if mode in modes:
            dict(check=check, time=time_all, few=few, tune=tune)[mode]()
