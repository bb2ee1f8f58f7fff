"""Which tiles are fast on this GPU: each kernel that has a choice runs at a model's shapes with a few of them."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from triton.runtime.errors import OutOfResources

from vl2.core.model_config import LanguageConfig, MLAConfig, MoEConfig
from vl2.ops.attention import kernel as attention
from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.attention.kernel_mla import attend_mla
from vl2.ops.chain import is_before_hopper
from vl2.ops.experts import kernel as experts_kernel
from vl2.ops.experts import kernel_many
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.rope.table import rope_table

Work = Callable[[], object]
Timer = Callable[[Work], float]
"""Work → seconds that it takes."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a tile should be fast at."""

    batches: tuple[int, ...] = (1, 8, 32, 128)  # sequences that decode together
    many: int = 256  # more of them than a card has multiprocessors
    context_tokens: int = 1024
    prompt_tokens: int = 8192  # of a step
    chunk_tokens: int = 32  # of a prompt's last chunk
    page_size: int = 16


@dataclass(frozen=True)
class Case:
    """One kernel."""

    kernel: str
    usual: Any  # its tile today
    changes: Sequence[dict[str, int]]  # fields in which other tiles differ from it
    works: Callable[[Any], list[Work]]  # with this tile


@dataclass(frozen=True, slots=True)
class Finding:
    kernel: str
    tile: Any
    speedup: float  # geometric mean over the works, beside the usual tile


def tune(cases: Iterator[Case], timer: Timer) -> Iterator[Finding]:
    """The best tile of each kernel. A tile for which the GPU has too little shared memory is left out."""
    for case in cases:
        usual = [timer(work) for work in case.works(case.usual)]
        best = Finding(case.kernel, case.usual, 1.0)
        for changes in case.changes:
            tile = replace(case.usual, **changes)
            try:
                times = [timer(work) for work in case.works(tile)]
            except OutOfResources:
                continue
            speedup = math.exp(statistics.mean(math.log(old / new) for old, new in zip(usual, times, strict=True)))
            if speedup > best.speedup:
                best = Finding(case.kernel, tile, speedup)
        yield best


def seconds_on_gpu(work: Work) -> float:
    """The median of 20 runs, after some that compile and warm up."""
    for _ in range(5):
        work()
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def model_cases(
    config: LanguageConfig, device: torch.device, dtype: torch.dtype = torch.bfloat16, load: Load = Load()
) -> Iterator[Case]:
    """Of a model's kernels; each case's tensors are drawn when it is its turn, and given back after it."""
    if config.mla is None:
        yield from _head_cases(config, device, dtype, load)
    else:
        yield from _latent_cases(config, config.mla, device, dtype, load)
    if config.moe is not None:
        yield from _expert_cases(config.hidden_size, config.moe, device, dtype, load)


# ---- attention


def _pipelines(*choices: tuple[int, int, int], **fields: int) -> list[dict[str, int]]:
    """(block_n, num_warps, num_stages)"""
    return [dict(block_n=n, num_warps=warps, num_stages=stages, **fields) for n, warps, stages in choices]


def _with_programs(choices: list[dict[str, int]], *counts: int) -> list[dict[str, int]]:
    return [choice | {"programs": count} for choice in choices for count in counts]


def _head_cases(config: LanguageConfig, device: torch.device, dtype: torch.dtype, load: Load) -> Iterator[Case]:
    def works(shapes: list[list[ChunkShape]]) -> list[Work]:
        batches = [_batch(chunks, load, device) for chunks in shapes]
        most = max(int(batch.block_tables.max()) + 1 for batch in batches)
        pool = torch.randn(2, most, load.page_size, config.kv_heads, config.head_dim, device=device).to(dtype)
        queries = [torch.randn(_rows(c), config.heads, config.head_dim, device=device).to(dtype) for c in shapes]
        return [
            functools.partial(attention.attend_heads, q, pool, batch, config.head_dim**-0.5)
            for q, batch in zip(queries, batches, strict=True)
        ]

    decode = _with_programs(_pipelines((64, 4, 2), (64, 4, 3), (64, 4, 4), (128, 4, 3), (32, 4, 4)), 264, 800, 1600)
    yield _attention_case("decode_heads", decode, works(_decodes(load)))
    prefill = _pipelines((64, 8, 3), (64, 8, 2), (32, 8, 4), block_m=128) + _pipelines(
        (64, 4, 2), (64, 4, 3), block_m=64
    )
    yield _attention_case("prefill_heads", prefill, works(_prompts(load)))


def _latent_cases(
    config: LanguageConfig, mla: MLAConfig, device: torch.device, dtype: torch.dtype, load: Load
) -> Iterator[Case]:
    heads, rank, width = config.heads, mla.kv_lora_rank, mla.nope_dim + mla.rope_dim
    kv_b = torch.randn(heads * (mla.nope_dim + mla.value_dim), rank, device=device).to(dtype) * rank**-0.5
    rope = rope_table(mla.rope_dim, load.context_tokens + load.prompt_tokens, config.rope_theta, config.yarn, device)

    def works(shapes: list[list[ChunkShape]]) -> list[Work]:
        batches = [_batch(chunks, load, device) for chunks in shapes]
        most = max(int(batch.block_tables.max()) + 1 for batch in batches)
        pool = torch.randn(most, load.page_size, rank + mla.rope_dim, device=device).to(dtype)
        queries = [torch.randn(_rows(chunks), heads, width, device=device).to(dtype) for chunks in shapes]
        nothing = torch.empty(0, device=device)  # positions follow from the batch
        return [
            functools.partial(attend_mla, q, kv_b, pool, rope, nothing, batch, width**-0.5)
            for q, batch in zip(queries, batches, strict=True)
        ]

    decode = _with_programs(_pipelines((64, 4, 2), (32, 4, 3), (32, 4, 4), (32, 8, 4), (64, 8, 2)), 132, 264, 528)
    one, *more = _decodes(load)
    yield _attention_case("decode_latent_one", decode, works([one]))
    yield _attention_case("decode_latent", decode, works(more))
    many = _pipelines((64, 4, 2), (32, 4, 3), (32, 4, 4), (32, 8, 3))
    yield _attention_case("decode_latent_many", many, works([_chunks(load, load.many, 1)]))
    absorbed = _pipelines((64, 8, 2), (32, 8, 3), (32, 4, 3), (32, 8, 2))
    yield _attention_case("prefill_latent", absorbed, works([_chunks(load, 32, load.chunk_tokens)]))
    expanded = _pipelines((64, 8, 3), (64, 8, 2), (32, 8, 4), block_m=128) + _pipelines(
        (64, 4, 2), (32, 4, 3), block_m=64
    )
    yield _attention_case("prefill_expanded", expanded, works(_prompts(load)))


def _attention_case(kernel: str, changes: list[dict[str, int]], works: list[Work]) -> Case:
    def with_tile(tile: attention.Tile) -> list[Work]:
        return [functools.partial(_run_with, kernel, tile, work) for work in works]

    return Case(kernel, attention.TILES[kernel], changes, with_tile)


def _run_with(kernel: str, tile: attention.Tile, work: Work) -> None:
    with _tile_of(kernel, tile):
        work()


@contextmanager
def _tile_of(kernel: str, tile: attention.Tile) -> Iterator[None]:
    usual, attention.TILES[kernel] = attention.TILES[kernel], tile
    try:
        yield
    finally:
        attention.TILES[kernel] = usual


def _rows(chunks: list[ChunkShape]) -> int:
    return chunks[-1].start + chunks[-1].length


def _chunks(load: Load, count: int, length: int) -> list[ChunkShape]:
    """The last `length` tokens of so many contexts."""
    return [ChunkShape(i * length, length, max(load.context_tokens, length)) for i in range(count)]


def _decodes(load: Load) -> list[list[ChunkShape]]:
    return [_chunks(load, count, 1) for count in load.batches]


def _prompts(load: Load) -> list[list[ChunkShape]]:
    """One prompt, and as many as a step holds."""
    whole = load.context_tokens
    return [_chunks(load, count, whole) for count in sorted({1, max(1, load.prompt_tokens // whole)})]


def _batch(chunks: list[ChunkShape], load: Load, device: torch.device) -> AttentionBatch:
    """Pages in random order."""
    pages = -(-chunks[0].context_length // load.page_size)
    tables = torch.randperm(len(chunks) * pages, dtype=torch.int32).view(len(chunks), pages).to(device)
    batch = AttentionBatch.of(chunks, tables)
    return dataclasses.replace(batch, is_fresh=all(chunk.length == chunk.context_length > 1 for chunk in chunks))


# ---- experts


def _expert_cases(
    width: int, config: MoEConfig, device: torch.device, dtype: torch.dtype, load: Load
) -> Iterator[Case]:
    inner, shared = config.expert_width, config.shared_width

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, device=device) * 0.03).to(dtype)

    weights = ExpertWeights(
        draw(config.num_experts, 2 * inner, width),
        draw(config.num_experts, width, inner),
        draw(2 * shared, width) if shared else None,
        draw(width, shared) if shared else None,
    )

    def works(run: Callable[..., object], counts: Sequence[int], *more: Any) -> list[Work]:
        found: list[Work] = []
        for count in counts:
            ids = torch.rand(count, config.num_experts, device=device).topk(config.num_active).indices.int()
            shares = torch.rand(count, config.num_active, device=device)
            found.append(functools.partial(run, draw(count, width), ids, shares, weights, *more))
        return found

    def sorted_works(counts: Sequence[int]) -> Callable[[Any], list[Work]]:
        return lambda tile: works(experts_kernel.mix_tiled, counts, tile)

    few = [dict(up_n=n, down_n=m, up_k=k, down_k=k, num_stages=s)
           for n, m in ((32, 32), (64, 32), (64, 64), (16, 32)) for k, s in ((128, 3), (128, 4), (64, 6))]  # fmt: skip
    yield Case("experts_few", experts_kernel.FEW, few, sorted_works(load.batches[1:-1]))
    several = [dict(up_n=n, down_n=m, up_k=k, num_warps=w, num_stages=s)
               for n, m in ((64, 64), (32, 32), (64, 32))
               for k, w, s in ((64, 4, 4), (128, 4, 3), (128, 8, 3))]  # fmt: skip
    yield Case("experts_several", experts_kernel.SEVERAL, several, sorted_works(load.batches[-1:]))
    some = [dict(up_n=n, down_n=m, num_warps=w, num_stages=s)
            for n, m in ((64, 128), (64, 64), (128, 128)) for w, s in ((4, 3), (4, 4), (8, 3))]  # fmt: skip
    yield Case("experts_some", experts_kernel.SOME, some, sorted_works([load.prompt_tokens // 16]))
    if is_before_hopper(device):
        many = [dict(up_n=n, down_n=m, num_warps=w, num_stages=s)
                for n, m in ((128, 128), (64, 128)) for w, s in ((8, 2), (8, 3), (8, 4), (4, 3))]  # fmt: skip
        yield Case(
            "experts_sorted", experts_kernel.MANY, many, sorted_works([load.prompt_tokens // n for n in (8, 4, 1)])
        )
        return
    many = [dict(block_m=b, up_n=n, down_n=m, num_warps=w, num_stages=s)
            for b, n, m, w in ((128, 128, 256, 8), (128, 64, 128, 8), (64, 64, 128, 4), (64, 128, 128, 8))
            for s in (3, 4, 5)]  # fmt: skip
    medium = load.prompt_tokens // 8, load.prompt_tokens * 3 // 16
    yield Case("experts_sorted", experts_kernel.MANY, many, sorted_works(medium))
    many = [dict(up_n=n, down_n=m, num_stages=s) for n, m in ((128, 256), (128, 128), (64, 128)) for s in (2, 3, 4)]
    large = load.prompt_tokens // 4, load.prompt_tokens // 2, load.prompt_tokens
    yield Case("experts_many", kernel_many.TILE, many, lambda tile: works(kernel_many.mix_many, large, tile))
