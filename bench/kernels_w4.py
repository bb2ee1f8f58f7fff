"""4-bit kernels on a GPU: are they right on the real shapes, how long do they take, how near is the floor?

    python bench/kernels_w4.py [check] [time] [few] [tune]     (nothing named: check and time)

check  errors against float64 on the same dequantised weights
time   experts of 1 to 8,192 tokens and each linear, int4 beside our bfloat16 kernels and cuBLAS, in the same run
few    up to 128 tokens: the tiles of both kernel_few.py beside those of whole tiles (kernel.py), minutes
tune   other tiles than those of ops/quantized_experts/kernel.py and ops/quantized_linear/kernel.py
The floor is bytes over 3.0 TB/s or operations over 770 TFLOP/s, whichever is more. Weights of several layers are used
in turn, so that the cache of the card does not hold them.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from kernels_attention import error, line, microseconds, report

from vl2.core.quantization import WeightScheme
from vl2.ops.experts import kernel as dense_experts
from vl2.ops.experts.mixture import add_up
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.quantized_experts import kernel as experts_kernel
from vl2.ops.quantized_experts import kernel_few as few_experts
from vl2.ops.quantized_experts.weights import QuantizedExperts
from vl2.ops.quantized_linear import kernel as linear_kernel
from vl2.ops.quantized_linear import kernel_few as few_linear
from vl2.ops.quantized_weight import triton_layout
from vl2.ops.quantized_weight.weight import QuantizedWeight

DEVICE, DTYPE = "cuda", torch.bfloat16
INT4 = WeightScheme(4, 128)
EXPERTS = {"Tiny": (64, 2, 6, 1280, 896), "Small": (64, 2, 6, 2048, 1408), "base": (72, 2, 6, 2560, 1536)}
"""Routed, shared, chosen, width, inner width."""
LINEARS = {
    "Small q": (3072, 2048, INT4),
    "Small kv_a": (576, 2048, INT4),
    "Small o": (2048, 2048, INT4),
    "Small dense gate-up": (21888, 2048, INT4),
    "Small dense down": (2048, 10944, WeightScheme(4, 64)),
    "Tiny qkv": (3840, 1280, INT4),
}
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 2048, 4096, 8192)
ROWS = (1, 8, 32, 64, 256, 1024, 8192)
LAYERS = 4


def draw(shape: tuple[int, ...], scheme: WeightScheme) -> QuantizedWeight:
    """Random codes and scales, made at once in the kernels' layout."""
    codes, scales = triton_layout.empty(shape, scheme, DTYPE, DEVICE)
    info = torch.iinfo(codes.dtype)
    codes.random_(info.min, info.max + 1)
    scales.uniform_(0.5, 1.5).mul_(0.2 / shape[-1] ** 0.5)
    return QuantizedWeight(codes, scales, scheme, shape[-1])


def draw_experts(name: str) -> QuantizedExperts:
    routed, shared, _, width, inner = EXPERTS[name]
    total = routed + shared
    return QuantizedExperts(draw((total, 2 * inner, width), INT4), draw((total, width, inner), INT4), shared)


def draw_dense(name: str) -> ExpertWeights:
    routed, shared, _, width, inner = EXPERTS[name]
    shapes = (routed, 2 * inner, width), (routed, width, inner), (2 * shared * inner, width), (width, shared * inner)
    return ExpertWeights(*(torch.randn(*shape, device=DEVICE, dtype=DTYPE) / shape[-1] ** 0.5 for shape in shapes))


def routes(name: str, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """ids, weights, distinct experts, as an even router would choose."""
    routed, shared, chosen, *_ = EXPERTS[name]
    ids = torch.rand(num_tokens, routed, device=DEVICE).topk(chosen).indices.int()
    return ids, torch.rand(num_tokens, chosen, device=DEVICE), len(ids.unique()) + shared


# ---- check


def check() -> None:
    for label, (out_width, in_width, scheme) in LINEARS.items():
        for rows in (1, 7, 40, 300, 700):
            report(f"{label}, {rows} rows", check_linear, out_width, in_width, scheme, rows)
    for scheme in (WeightScheme(8, None), WeightScheme(8, 128)):
        report(f"Small q, 7 rows, {scheme}", check_linear, 3072, 2048, scheme, 7)
    for name in EXPERTS:
        for tokens in (1, 5, 64, 500, 3000):
            report(f"{name} experts, {tokens} tokens", check_experts, name, tokens)


def check_linear(out_width: int, in_width: int, scheme: WeightScheme, rows: int) -> str:
    weight = draw((out_width, in_width), scheme)
    x = torch.randn(rows, in_width, device=DEVICE, dtype=DTYPE)
    matrix = triton_layout.dequantize(weight)
    expected = x.double() @ matrix.double().T
    out, again = (linear_kernel.quantized_linear(x, weight) for _ in range(2))
    told = f"{error(out, expected):.2e} / {error(F.linear(x, matrix), expected):.2e}"
    return told + ("" if torch.equal(out, again) else "  NOT REPEATABLE")


def check_experts(name: str, tokens: int) -> str:
    """Beside our bfloat16 kernels with the weights written out."""
    experts, (ids, weights, _) = draw_experts(name), routes(name, tokens)
    x = torch.randn(tokens, EXPERTS[name][3], device=DEVICE, dtype=DTYPE)
    gate_up, down = (linear_kernel.dequantize(weight, DTYPE) for weight in (experts.gate_up, experts.down))
    shared_ids = torch.arange(len(gate_up) - experts.num_shared, len(gate_up), device=DEVICE, dtype=ids.dtype)
    all_ids = torch.cat((ids, shared_ids.expand(tokens, -1)), 1)
    all_weights = F.pad(weights, (0, experts.num_shared), value=1.0)
    expected = torch.zeros(tokens, x.shape[1], dtype=torch.float64, device=DEVICE)
    for expert in range(len(gate_up)):
        token, choice = (all_ids == expert).nonzero(as_tuple=True)
        gate, up = (x[token].double() @ gate_up[expert].double().T).chunk(2, -1)
        result = (F.silu(gate) * up) @ down[expert].double().T
        expected.index_add_(0, token, result * all_weights[token, choice].double()[:, None])
    dense = add_up(dense_experts.mix_experts(x, all_ids, all_weights, ExpertWeights(gate_up, down, None, None)))
    out, again = (add_up(experts_kernel.mix_quantized_experts(x, ids, weights, experts)) for _ in range(2))
    told = f"{error(out, expected):.2e} / {error(dense, expected):.2e}"
    return told + ("" if torch.equal(out, again) else "  NOT REPEATABLE")


# ---- time


@functools.cache
def layers(name: str) -> tuple[list[QuantizedExperts], list[ExpertWeights]]:
    return [draw_experts(name) for _ in range(LAYERS)], [draw_dense(name) for _ in range(2)]


def expert_calls(
    name: str, tokens: int, tile: experts_kernel.Tile | few_experts.Tile | None
) -> tuple[list[Callable[[], object]], int]:
    calls, distinct = [], 0
    for i in range(2 * LAYERS):
        ids, weights, number = routes(name, tokens)
        x = torch.randn(tokens, EXPERTS[name][3], device=DEVICE, dtype=DTYPE)
        arguments = (x, ids, weights, layers(name)[0][i % LAYERS])
        mix = experts_kernel.mix_quantized_experts if tile is None else experts_kernel.mix_with_tile
        mix = few_experts.mix_few if isinstance(tile, few_experts.Tile) else mix
        calls.append(functools.partial(mix, *arguments, *(() if tile is None else (tile,))))
        distinct += number
    return calls, distinct // len(calls)


def time_experts(name: str, tokens: int) -> str:
    _, shared, chosen, width, inner = EXPERTS[name]
    calls, distinct = expert_calls(name, tokens, None)
    num_bytes = distinct * 3 * width * inner * (0.5 + 2 / 128) + 4 * tokens * width
    flops = 6 * tokens * (chosen + shared) * width * inner
    dense_calls = []
    for i in range(4):
        ids, weights, _ = routes(name, tokens)
        x = torch.randn(tokens, width, device=DEVICE, dtype=DTYPE)
        dense_calls.append(functools.partial(dense_experts.mix_experts, x, ids, weights, layers(name)[1][i % 2]))
    told = f"{line(calls, num_bytes, flops)}; bfloat16 {microseconds(dense_calls):8.1f} µs"
    if tokens < 1024:
        return told
    inside, _ = expert_calls(name, tokens, experts_kernel.MANY)
    outside = [functools.partial(experts_kernel.mix_written_out, *call.args) for call in calls]
    return told + f"; unpacked inside {microseconds(inside):8.1f}, written out {microseconds(outside):8.1f} µs"


def time_linear(label: str, rows: int) -> str:
    out_width, in_width, scheme = LINEARS[label]
    num_bytes = out_width * in_width * (0.5 + 2 / (scheme.group_size or 128)) + 2 * rows * (in_width + out_width)
    copies = max(2, min(32, int(4e8 / num_bytes)))
    x = torch.randn(rows, in_width, device=DEVICE, dtype=DTYPE)
    weights = [draw((out_width, in_width), scheme) for _ in range(copies)]
    dense = [torch.randn(out_width, in_width, device=DEVICE, dtype=DTYPE) for _ in range(max(2, copies // 3))]
    calls = [functools.partial(linear_kernel.quantized_linear, x, weight) for weight in weights]
    blas = microseconds([functools.partial(F.linear, x, matrix) for matrix in dense])
    return f"{line(calls, num_bytes, 2 * rows * in_width * out_width)}; cuBLAS bfloat16 {blas:8.1f} µs"


def time_all() -> None:
    for name in EXPERTS:
        for tokens in TOKENS:
            report(f"{name} experts, {tokens} tokens", time_experts, name, tokens)
        layers.cache_clear()
        torch.cuda.empty_cache()
    for label in LINEARS:
        for rows in ROWS:
            report(f"{label}, {rows} rows", time_linear, label, rows)


# ---- tune

FEW_TOKENS = {8: (1, 2, 4, 8), 16: (1, 8, 32, 64, 128)}
"""By the rows of a block."""
FEW_EXPERTS = [
    few_experts.Tile(m, up_n, down_n, warps, warps, stages)
    for m in (8, 16)
    for up_n, down_n, warps, stages in (
        (16, 16, 4, 2), (16, 16, 4, 3), (16, 16, 4, 4), (16, 32, 4, 3), (32, 32, 4, 2), (32, 32, 4, 3), (32, 64, 4, 2),
        (16, 16, 2, 4), (16, 16, 8, 2), (32, 32, 8, 2), (32, 32, 2, 4),
    )
]  # fmt: skip
FEW_LINEARS = [
    few_linear.Tile(m, n, warps, stages)
    for m in (8, 16)
    for n, warps, stages in ((16, 4, 3), (16, 4, 4), (16, 8, 2), (16, 8, 3), (32, 4, 3), (32, 8, 2))
]
EXPERT_TILES = {
    (256,): [experts_kernel.Tile(m, n, n, False, 4, stages) for m in (32, 64) for n in (64, 128) for stages in (3, 4)],
    (1024, 8192): [
        experts_kernel.Tile(m, n, down_n, True, warps, stages)
        for m, n, down_n in ((64, 64, 128), (128, 64, 128), (128, 128, 128), (256, 64, 128))
        for warps, stages in ((4, 3), (8, 3), (8, 4))
    ],
}
LINEAR_TILES = {
    (32, 64): [
        linear_kernel.Tile(m, n, programs, False, 4, 4)
        for m in (32, 64)
        for n in (32, 64)
        for programs in (1, 132, 264)
    ],
    (256, 512): [
        linear_kernel.Tile(m, n, 1, first, warps, 3)
        for m, n in ((64, 64), (64, 128), (128, 64), (128, 128))
        for first in (False, True)
        for warps in (4, 8)
    ],
}


def few() -> None:
    for tile in (experts_kernel.FEW, *FEW_EXPERTS):
        counts = FEW_TOKENS[tile.block_m] if isinstance(tile, few_experts.Tile) else (1, 2, 4, 8, 32, 64, 128)
        report(f"Small experts, {counts} tokens, {shown(tile)}", tune_experts, counts, tile)
    for label in ("Small q", "Small kv_a", "Small o", "Small dense down"):
        for tile in (linear_kernel.FEW, *FEW_LINEARS):
            counts = (1, 8) if tile.block_m == 8 else (1, 8, 16, 32)
            report(f"{label}, {counts} rows, {shown(tile)}", tune_linear, label, counts, tile)


def tune() -> None:
    for counts, tiles in EXPERT_TILES.items():
        for tile in tiles:
            report(f"Small experts, {counts} tokens, {shown(tile)}", tune_experts, counts, tile)
    for label in ("Small q", "Small kv_a", "Small o"):
        for counts, tiles in LINEAR_TILES.items():
            for tile in tiles:
                report(f"{label}, {counts} rows, {shown(tile)}", tune_linear, label, counts, tile)


def shown(tile: object) -> str:
    return " ".join([tile.__module__.split(".")[-1], *(str(int(value)) for value in dataclasses.astuple(tile))])


def tune_experts(counts: tuple[int, ...], tile: experts_kernel.Tile | few_experts.Tile) -> str:
    return " | ".join(f"{microseconds(expert_calls('Small', tokens, tile)[0]):8.1f}" for tokens in counts)


def tune_linear(label: str, counts: tuple[int, ...], tile: linear_kernel.Tile | few_linear.Tile) -> str:
    out_width, in_width, scheme = LINEARS[label]
    weights = [draw((out_width, in_width), scheme) for _ in range(32)]
    times = []
    for rows in counts:
        x, out = (torch.randn(rows, width, device=DEVICE, dtype=DTYPE) for width in (in_width, out_width))
        own = (x, None, out, tile)
        times.append(microseconds([functools.partial(multiply, weight, *own) for weight in weights]))
    return " | ".join(f"{us:8.1f}" for us in times)


def multiply(weight: QuantizedWeight, x, bias, out, tile: linear_kernel.Tile | few_linear.Tile) -> None:
    if isinstance(tile, few_linear.Tile):
        few_linear.multiply_few(x, bias, [(weight, out)], tile)
    else:
        linear_kernel.multiply(x, weight, bias, out, tile)


if __name__ == "__main__":
    torch.manual_seed(0)
    print(torch.cuda.get_device_name(), torch.__version__)
    modes = sys.argv[1:] or ["check", "time"]
    for mode in ("check", "time", "few", "tune"):
        if mode in modes:
            dict(check=check, time=time_all, few=few, tune=tune)[mode]()
