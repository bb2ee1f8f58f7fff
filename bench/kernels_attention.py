"""Attention's kernels on a GPU: are they right on the real shapes, how long do they take, how near is the floor?

    python bench/kernels_attention.py [check] [time] [tune]     (nothing named: check and time)

check  errors against float64, beside those of the torch reference (1.00: the same)
time   each op as in a decode step with 1,024 positions of context, and in a prefill of 16 × 1,024 tokens
tune   other tiles than the tables of ops/attention/kernel.py
The floor is bytes over 3.0 TB/s or operations over 770 TFLOP/s, whichever is more. Layers' pools lie side by side, so
that the cache of the card does not hold them.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch

from vl2.ops import torch_backend
from vl2.ops.attention import kernel as attention
from vl2.ops.attention import kernel_mla
from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.attention.kernel import FLOAT32_TILES, TILES
from vl2.ops.rope import kernel as rope_kernel
from vl2.ops.rope import reference as rope_reference
from vl2.ops.rope.table import rope_table

BYTES_PER_S, FLOPS_PER_S = 3.0e12, 770e12
PAGE_SIZE, MAX_PAGES = 16, 256
HEADS = {"Tiny": (10, 10, 128), "grouped": (16, 4, 128)}
LATENT = {"Small": (16, 512, 64), "base": (32, 512, 64)}
DECODE_BATCHES, CONTEXT = (1, 8, 32, 128), 1024
MLA_MIXED = [(300, 1), (1000, 1), (700, 300), (900, 150)]
PREFILL = [(1024, 1024)] * 16
CHUNKED, ABSORBED = [(2048, 1024)] * 2, [(1024, 32)] * 32
MIXED = [(CONTEXT, 1)] * 128 + [(1024, 1024)]
DEVICE = "cuda"


def make_batch(shapes: list[tuple[int, int]]) -> tuple[AttentionBatch, int, int]:
    """(context, rows) of each chunk → batch, query rows, pages."""
    chunks, start, counts = [], 0, [-(-context // PAGE_SIZE) for context, _ in shapes]
    for context, rows in shapes:
        chunks.append(ChunkShape(start, rows, context))
        start += rows
    tables = torch.zeros(len(shapes), MAX_PAGES, dtype=torch.int32)
    order, used = torch.randperm(sum(counts), dtype=torch.int32), 0
    for table, count in zip(tables, counts, strict=True):
        table[:count] = order[used : used + count]
        used += count
    num_decodes = next((i for i, (_, rows) in enumerate(shapes) if rows > 1), 0)
    is_fresh = shapes[0][1] > 1 and all(context == rows for context, rows in shapes)
    batch = AttentionBatch.of(chunks, tables.to(DEVICE))
    return dataclasses.replace(batch, num_decodes=num_decodes, is_fresh=is_fresh), start, sum(counts)


def exact(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: AttentionBatch, scale: float
) -> torch.Tensor:
    """float64. keys and values [pages, page size, K, ·]."""
    out, group = q.new_zeros(*q.shape[:2], values.shape[-1], dtype=torch.float64), q.shape[1] // keys.shape[2]
    for table, chunk in zip(batch.block_tables, batch.chunks, strict=True):
        pages = table[: -(-chunk.context_length // PAGE_SIZE)]
        k, v = (
            x[pages].flatten(0, 1)[: chunk.context_length].double().repeat_interleave(group, 1).transpose(0, 1)
            for x in (keys, values)
        )
        rows = slice(chunk.start, chunk.start + chunk.length)
        scores = q[rows].double().transpose(0, 1) @ k.transpose(1, 2) * scale
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(k.shape[1] - chunk.length + 1)
        out[rows] = (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(0, 1)
    return out


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


def check() -> None:
    mixed = [(1024, 1024), (1500, 300), (700, 1), (64, 64), (1, 1)]
    decode = [(context, 1) for context in (1, 63, 64, 65, 255, 256, 257, 1024, 2000)]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for path, shapes in (("decode", decode), ("mixed", mixed)):
            batch, rows, pages = make_batch(shapes)
            for name, (heads, kv_heads, dim) in HEADS.items():
                q = torch.randn(rows + 3, heads, dim, device=DEVICE).to(dtype)
                pool = torch.randn(2, pages, PAGE_SIZE, kv_heads, dim, device=DEVICE).to(dtype)
                arguments = (q, pool, batch, dim**-0.5)
                wanted = functools.partial(exact, q, pool[0], pool[1], batch, dim**-0.5)
                judge(f"attend_heads {path} {name}", dtype, "attend_heads", arguments, wanted)
        for path, shapes in (
            ("decode", decode),
            ("few", decode[-3:]),
            ("absorbed", mixed),
            ("fresh", [(200, 200), (64, 64), (513, 513)]),
            ("mixed", MLA_MIXED),
        ):
            check_mla(path, shapes, dtype)
        for rows in (3, 100, 700):
            check_rope(rows, dtype)


def check_mla(path: str, shapes: list[tuple[int, int]], dtype: torch.dtype) -> None:
    """Errors of the kernels and of the reference against the reference in float64."""

    usual = kernel_mla.MIN_ROWS

    def run() -> str:
        case = MLACase("Small", shapes, dtype, copies=1)
        (arguments,) = case.arguments
        wide = [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in arguments]
        expected = torch_backend.attend_mla(*wide)
        kernel_mla.MIN_ROWS = 1 << 30 if path == "absorbed" else usual
        outs = [ops(*arguments) for ops in (kernel_mla.attend_mla, kernel_mla.attend_mla, torch_backend.attend_mla)]
        again = "" if torch.equal(outs[0], outs[1]) else "  NOT REPEATABLE"
        return f"{error(outs[0], expected):.2e} / {error(outs[2], expected):.2e}" + again

    report(f"attend_mla {path} {str(dtype)[6:]}", run)
    kernel_mla.MIN_ROWS = usual


def judge(label: str, dtype: torch.dtype, op: str, arguments: tuple, wanted: Callable[[], torch.Tensor]) -> None:
    def run() -> str:
        expected = wanted()
        reference = error(getattr(torch_backend, op)(*arguments).to(dtype), expected)
        out = getattr(attention, op)(*arguments)
        again = getattr(attention, op)(*arguments)
        return f"{error(out, expected):.2e} / {reference:.2e}" + ("" if torch.equal(out, again) else "  NOT REPEATABLE")

    report(f"{label} {str(dtype)[6:]}", run)


def check_rope(rows: int, dtype: torch.dtype) -> None:
    positions, slots = torch.randint(4096, (rows,), device=DEVICE), torch.randperm(rows, device=DEVICE)

    def compare(out: torch.Tensor, expected: torch.Tensor) -> str:
        return f"{error(out, expected.double()):.1e}"

    def write(op: str, pool_shape: tuple[int, ...], *arguments: object) -> str:
        pools = [torch.full(pool_shape, 7.0, device=DEVICE, dtype=dtype) for _ in range(2)]
        for ops, pool in zip((rope_kernel, torch_backend), pools, strict=True):
            getattr(ops, op)(*arguments, positions, slots, pool)
        return f"{error(pools[0], pools[1].double()):.1e}"

    def run() -> str:
        pages = rows // PAGE_SIZE + 2
        kv_b = torch.randn(16, 256, 512, device=DEVICE).to(dtype)
        halves, pairs = rope_table(128, 4096, 1e4, None, DEVICE), rope_table(64, 4096, 1e4, None, DEVICE)
        qkv = torch.randn(rows, 30 * 128, device=DEVICE).to(dtype)
        latent = torch.randn(rows, 576, device=DEVICE).to(dtype)
        weight = torch.randn(512, device=DEVICE).to(dtype)
        q = torch.randn(rows, 16, 192, device=DEVICE).to(dtype)
        expanded = torch.randn(rows, 16, 512, device=DEVICE).to(dtype)
        return " ".join(
            (
                write("write_heads", (2, pages, PAGE_SIZE, 10, 128), qkv, halves),
                write("write_latent", (pages, PAGE_SIZE, 576), latent, weight, 1e-6, pairs),
                compare(
                    rope_kernel.absorb_queries(q, kv_b[:, :128]),
                    rope_reference.absorb_queries(q, kv_b[:, :128], pairs, positions)[..., :512],
                ),
                compare(
                    rope_kernel.expand_values(expanded, kv_b[:, 128:]),
                    rope_reference.expand_values(expanded, kv_b[:, 128:]),
                ),
            )
        )

    report(f"write_heads write_latent absorb expand, {rows} rows {str(dtype)[6:]}", run)


def report(label: str, run: Callable[..., str], *arguments: Any) -> None:
    try:
        result = run(*arguments)
    except Exception as exception:  # one failure must not hide the others
        lines = [line for line in str(exception).splitlines() if line.strip()] or [""]
        result = f"{type(exception).__name__}: {lines[-1][:150]}"
    print(f"{label:58} {result}", flush=True)


def microseconds(calls: list[Callable[[], object]]) -> float:
    """Of one call: all are captured in one graph, whose replays are timed."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / len(calls))
    return statistics.median(times[2:])


def line(calls: list[Callable[[], object]], num_bytes: float, flops: float) -> str:
    us = microseconds(calls)
    floor = max(num_bytes / BYTES_PER_S, flops / FLOPS_PER_S) * 1e6
    return (
        f"{us:8.1f} µs {num_bytes / us / 1e3:7.0f} GB/s {flops / us / 1e6:6.1f} TFLOP/s  {floor / us:5.0%} of the floor"
    )


class Case:
    """attend_heads on one model's shape, with as many layers' pools as the card's cache does not hold."""

    def __init__(self, name: str, shapes: list[tuple[int, int]], kv_dtype: torch.dtype = torch.bfloat16) -> None:
        (heads, kv_heads, width), (batch, rows, pages) = HEADS[name], make_batch(shapes)
        pairs = sum(own * context - own * (own - 1) / 2 for context, own in shapes)
        shape = (2, pages, PAGE_SIZE, kv_heads, width)
        self.flops = 4 * heads * width * pairs
        self.num_bytes = kv_dtype.itemsize * torch.Size(shape).numel() + 4 * rows * heads * width
        q = torch.randn(rows, heads, width, device=DEVICE, dtype=torch.bfloat16)
        copies = max(2, min(24, int(4e8 / self.num_bytes)))
        pools = [torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16).to(kv_dtype) for _ in range(copies)]
        self.calls = [functools.partial(attention.attend_heads, q, pool, batch, width**-0.5) for pool in pools]

    def line(self) -> str:
        return line(self.calls, self.num_bytes, self.flops)


class MLACase:
    """The whole of MLA between its projections, with as many layers' pools and weights as the cache does not hold."""

    def __init__(
        self,
        name: str,
        shapes: list[tuple[int, int]],
        dtype: torch.dtype = torch.bfloat16,
        copies: int = 0,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        (heads, rank, rotated), nope, value = LATENT[name], 128, 128
        batch, rows, pages = make_batch(shapes)
        table = rope_table(rotated, 4096, 1e4, None, DEVICE)
        positions = torch.cat([torch.arange(context - own, context) for context, own in shapes]).to(DEVICE)
        q = torch.randn(rows, heads, nope + rotated, device=DEVICE).to(dtype)
        pool_size, weight_size = pages * PAGE_SIZE * (rank + rotated), heads * (nope + value) * rank
        kv_dtype = kv_dtype or dtype
        self.num_bytes = kv_dtype.itemsize * pool_size + 2 * (weight_size + q.numel() + rows * heads * value)
        pairs = sum(own * context - own * (own - 1) / 2 for context, own in shapes if own > 1)
        self.flops = 2 * heads * (nope + rotated + value) * pairs
        self.flops += 2 * weight_size * sum(context for context, own in shapes if own > 1)
        copies = copies or max(2, min(24, int(4e8 / self.num_bytes)))
        self.arguments = [
            (
                q,
                (torch.randn(heads * (nope + value), rank, device=DEVICE) / 20).to(dtype),
                torch.randn(pages, PAGE_SIZE, rank + rotated, device=DEVICE).to(kv_dtype),
                table,
                positions,
                batch,
                0.072,
            )
            for _ in range(copies)
        ]

    def line(self) -> str:
        calls = [functools.partial(kernel_mla.attend_mla, *arguments) for arguments in self.arguments]
        return line(calls, self.num_bytes, self.flops)


def time_case(case: type[Case] | type[MLACase], name: str, shapes: list[tuple[int, int]]) -> str:
    """Made inside `report`, which tells of a case that does not even fit."""
    return case(name, shapes).line()


def side_by_side(cases: list[Case] | list[MLACase]) -> str:
    return " | ".join(case.line()[:11] for case in cases)


def time_mla() -> None:
    for name in LATENT:
        for count in DECODE_BATCHES:
            report(f"{name} MLA decode, batch {count}", time_case, MLACase, name, [(CONTEXT, 1)] * count)
        for label, shapes in (("16 × 1,024", PREFILL), ("1 × 1,024", PREFILL[:1]), ("2 × 1,024 of 2,048", CHUNKED)):
            report(f"{name} MLA prefill {label}", time_case, MLACase, name, shapes)
        report(f"{name} MLA 128 decodes and 1 × 1,024", time_case, MLACase, name, MIXED)


def time_libraries() -> None:
    """What torch has for the same work: dense SDPA (cuDNN or flash), flash with packed sequences."""
    length, count = 1024, 16
    pairs = count * length * (length + 1) / 2
    for label, heads, width, value in (("Tiny", 10, 128, 128), ("Small, expanded", 16, 192, 128)):
        dense = [
            torch.randn(count, length, heads, w, device=DEVICE, dtype=torch.bfloat16) for w in (width, width, value)
        ]
        work = sum(2 * x.numel() for x in dense), 2 * heads * (width + value) * pairs
        for backend in (torch.nn.attention.SDPBackend.CUDNN_ATTENTION, torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            report(f"{label} prefill 16 × 1,024, torch's {backend.name}", time_sdpa, backend, dense, work)
        report(f"{label} prefill 16 × 1,024, torch's packed flash", time_packed_flash, dense, work)


def time_sdpa(backend: torch.nn.attention.SDPBackend, dense: list[torch.Tensor], work: tuple[float, float]) -> str:
    """dense: queries, keys, values [sequences, length, H, width]; work: bytes, FLOPs."""
    transposed = [x.transpose(1, 2) for x in dense]
    call = functools.partial(torch.nn.functional.scaled_dot_product_attention, *transposed, is_causal=True)
    with torch.nn.attention.sdpa_kernel(backend):
        return line([call] * 4, *work)


def time_packed_flash(dense: list[torch.Tensor], work: tuple[float, float]) -> str:
    count, length = dense[0].shape[:2]
    q, k, v = (x.flatten(0, 1) for x in dense)
    v = torch.nn.functional.pad(v, (0, q.shape[2] - v.shape[2]))
    starts = torch.arange(count + 1, device=DEVICE, dtype=torch.int32) * length
    call = functools.partial(
        torch.ops.aten._flash_attention_forward, q, k, v, starts, starts, length, length, 0.0, True, False
    )
    return line([call] * 4, *work)


def time_attention() -> None:
    for count in DECODE_BATCHES:
        report(f"Tiny decode, batch {count}", time_case, Case, "Tiny", [(CONTEXT, 1)] * count)
    report("Tiny prefill 16 × 1,024", time_case, Case, "Tiny", PREFILL)
    report("Tiny prefill 1 × 1,024", time_case, Case, "Tiny", PREFILL[:1])
    report("Tiny 128 decodes and 1 × 1,024", time_case, Case, "Tiny", MIXED)


def time_rope() -> None:
    dtype = torch.bfloat16
    halves, pairs = rope_table(128, 4096, 1e4, None, DEVICE), rope_table(64, 4096, 1e4, None, DEVICE)
    kv_bs = [torch.randn(16, 256, 512, device=DEVICE, dtype=dtype) for _ in range(24)]
    for rows in (1, 8, 32, 128, 16384):
        positions, slots = torch.arange(rows, device=DEVICE) % 1024, torch.arange(rows, device=DEVICE)
        pages, repeat = rows // PAGE_SIZE + 1, 4 if rows > 1000 else 24
        pool = torch.empty(2, pages, PAGE_SIZE, 10, 128, device=DEVICE, dtype=dtype)
        latent_pool = torch.empty(pages, PAGE_SIZE, 576, device=DEVICE, dtype=dtype)
        qkv = torch.randn(rows, 3840, device=DEVICE, dtype=dtype)
        latent, weight = qkv[:, :576].contiguous(), qkv[0, :512].contiguous()
        q, expanded = (
            qkv[:, :3072].reshape(rows, 16, 192).contiguous(),
            torch.randn(rows, 16, 512, device=DEVICE, dtype=dtype),
        )
        cases: list[tuple[str, list[Callable[[], object]], float, float]] = [
            (
                "write_heads",
                [functools.partial(rope_kernel.write_heads, qkv, halves, positions, slots, pool)],
                4 * 3840,
                0,
            ),
            (
                "write_latent",
                [
                    functools.partial(
                        rope_kernel.write_latent, latent, weight, 1e-6, pairs, positions, slots, latent_pool
                    )
                ],
                4 * 576,
                0,
            ),
            (
                "absorb_queries",
                [functools.partial(rope_kernel.absorb_queries, q, b[:, :128]) for b in kv_bs],
                2 * 16 * (128 + 512),
                2 * 16 * 128 * 512,
            ),
            (
                "expand_values",
                [functools.partial(rope_kernel.expand_values, expanded, b[:, 128:]) for b in kv_bs],
                2 * 16 * (512 + 128),
                2 * 16 * 128 * 512,
            ),
        ]
        for name, calls, bytes_per_row, flops_per_row in cases:
            weights = 2 * 16 * 128 * 512 if flops_per_row else 0
            calls = (calls * repeat)[:repeat]
            report(
                f"{name}, {rows} rows",
                line,
                calls,
                bytes_per_row * rows + weights,
                flops_per_row * rows,
            )


def decode_variants(tiles: list[tuple[int, int, int]], programs: tuple[int, ...]) -> list[dict[str, int]]:
    """Every tile with the usual splits, and the usual tile with every other way to split."""
    variants = [dict(block_n=n, num_warps=w, num_stages=s) for n, w, s in tiles]
    return variants + [dict(programs=p, last_adds=last) for p in programs for last in (False, True)]


def prefill_variants(*tiles: tuple[int, int, int, int]) -> list[dict[str, int]]:
    return [dict(block_m=m, block_n=n, num_warps=w, num_stages=s) for m, n, w, s in tiles]


VARIANTS: dict[str, list[dict[str, int]]] = {
    "decode_heads": decode_variants([(64, 4, 2), (64, 4, 4), (128, 4, 3), (32, 4, 4)], (264, 528, 800, 1600)),
    "decode_latent": decode_variants([(64, 4, 2), (32, 4, 4), (32, 8, 4), (64, 8, 2)], (132, 264, 528, 1056)),
    "prefill_heads": prefill_variants(
        (128, 64, 8, 3), (128, 64, 8, 4), (64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 4, 4), (128, 128, 8, 3)
    ),
    "prefill_latent": prefill_variants((32, 64, 8, 2), (32, 32, 8, 3), (32, 32, 4, 3)),
    "prefill_expanded": prefill_variants(
        (128, 64, 8, 3), (64, 64, 4, 2), (64, 32, 4, 3), (128, 32, 8, 4), (128, 64, 8, 2)
    ),
}


def tune() -> None:
    for name, kernel, shapes in (
        ("Tiny", "decode_heads", [[(CONTEXT, 1)] * count for count in DECODE_BATCHES]),
        ("Small", "decode_latent", [[(CONTEXT, 1)] * count for count in DECODE_BATCHES]),
        ("Tiny", "prefill_heads", [PREFILL, PREFILL[:1]]),
        ("Small", "prefill_latent", [ABSORBED]),
        ("Small", "prefill_expanded", [PREFILL, PREFILL[:1]]),
    ):
        case_of = MLACase if name in LATENT else Case
        usual, cases = TILES[kernel], [case_of(name, shape) for shape in shapes]
        for changes in VARIANTS[kernel]:
            TILES[kernel] = dataclasses.replace(usual, **changes)
            report(f"{kernel} {changes}", side_by_side, cases)
        TILES[kernel] = usual


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    print(torch.cuda.get_device_name(), torch.__version__, f"tiles {TILES} {FLOAT32_TILES}")
    modes = sys.argv[1:] or ["check", "time"]
    if "check" in modes:
        check()
    if "time" in modes:
        time_attention()
        time_mla()
        time_libraries()
        time_rope()
    if "tune" in modes:
        tune()
