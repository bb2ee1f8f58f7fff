"""Attention of prompts and pictures, in every build of the library that has it: right, and a row's bits are its own."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.ops.native.builds import BUILT, library_path
from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.attention.reference import attend_heads
from vl2.ops.attention.tiles import attend_tiles
from vl2.ops.native.builds import BFLOAT16, X86_64, load
from vl2.ops.native.prompts import Workers, attention_workers

ATTENDING = [name for name in BUILT if dict(X86_64).get(name, frozenset()) >= BFLOAT16]


@pytest.fixture(scope="module", params=ATTENDING)
def library(request: pytest.FixtureRequest) -> Path:
    return library_path(request.param)


@pytest.fixture(scope="module")
def workers(library: Path) -> Workers:
    return Workers(load(library), 2)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def expected(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, is_causal: bool) -> torch.Tensor:
    group = q.shape[1] // keys.shape[1]
    own, all_keys, all_values = (x.double() for x in (q, *(x.repeat_interleave(group, 1) for x in (keys, values))))
    scores = torch.einsum("qhd,khd->hqk", own, all_keys) * scale
    if is_causal:
        seen = torch.ones(len(q), len(keys), dtype=torch.bool).tril(len(keys) - len(q))
        scores = scores.masked_fill(~seen, -math.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), all_values)


@pytest.mark.parametrize(
    ("rows", "context", "heads", "kv_heads", "dim", "value_dim", "is_causal"),
    [
        (1, 1, 1, 1, 2, 1, True),
        (25, 25, 4, 2, 64, 64, True),
        (7, 71, 3, 3, 128, 128, True),
        (49, 130, 2, 1, 96, 64, True),
        (65, 65, 3, 3, 72, 72, False),
        (30, 17, 2, 2, 10, 7, False),
        (24, 64, 2, 2, 32, 200, False),
        (33, 33, 2, 1, 192, 128, True),
        (32, 512, 2, 2, 64, 48, False),
        (40, 513, 4, 1, 64, 16, True),
        (9, 1100, 1, 1, 576, 512, True),
    ],
)
def test_it_is_softmax_attention(
    workers: Workers,
    rows: int,
    context: int,
    heads: int,
    kv_heads: int,
    dim: int,
    value_dim: int,
    is_causal: bool,
) -> None:
    q, keys, values = draw(rows, heads, dim), draw(context, kv_heads, dim), draw(context, kv_heads, value_dim)
    out = workers.attend(q, keys, values, dim**-0.5, is_causal)
    right = expected(q, keys, values, dim**-0.5, is_causal)
    torch.testing.assert_close(out.double(), right, atol=0.004, rtol=0.01)  # weights and results are rounded


def test_large_scores_of_either_sign_stay_finite(workers: Workers) -> None:
    q, keys, values = 100 * draw(30, 2, 64), 100 * draw(70, 2, 64), draw(70, 2, 64)
    out = workers.attend(q, keys, values, 1.0, True)
    torch.testing.assert_close(out.double(), expected(q, keys, values, 1.0, True), atol=0.004, rtol=0.01)


@pytest.mark.parametrize("growth", [-0.01, 0.01], ids=["falling", "growing"])
def test_the_largest_score_may_come_late_in_a_long_context(workers: Workers, growth: float) -> None:
    q, keys, values = draw(3, 1, 32).abs(), draw(1500, 1, 32).abs(), draw(1500, 1, 32)
    keys = keys * (growth * torch.arange(1500.0)).exp()[:, None, None].bfloat16()
    out = workers.attend(q, keys, values, 0.2, False)
    torch.testing.assert_close(out.double(), expected(q, keys, values, 0.2, False), atol=0.004, rtol=0.01)


def test_a_row_has_the_same_bits_in_any_chunk_and_whatever_comes_after_it(workers: Workers) -> None:
    q, keys, values = draw(600, 2, 64), draw(600, 2, 64), draw(600, 2, 64)
    whole = workers.attend(q, keys, values, 0.125, True)
    for begin, end in [(0, 1), (0, 37), (37, 61), (61, 510), (510, 530), (530, 600)]:
        part = workers.attend(q[begin:end], keys[:end], values[:end], 0.125, True)
        assert torch.equal(part, whole[begin:end]), (begin, end)


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_threads_share_the_queries_of_few_heads_and_change_no_bits(
    library: Path, workers: Workers, threads: int
) -> None:
    q, keys, values = draw(300, 4, 72), draw(300, 2, 72), draw(300, 2, 72)
    others = Workers(load(library), threads)
    assert torch.equal(others.attend(q, keys, values, 0.1, True), workers.attend(q, keys, values, 0.1, True))


def test_rows_may_be_strided(workers: Workers) -> None:
    qkv = draw(40, 3, 2, 64)
    q, keys, values = qkv.unbind(1)
    copied = workers.attend(q.contiguous(), keys.contiguous(), values.contiguous(), 0.125, False)
    assert torch.equal(workers.attend(q, keys, values, 0.125, False), copied)


@pytest.mark.parametrize("context", [1, 16, 100, 112])
def test_pages_are_read_where_they_lie(workers: Workers, context: int) -> None:
    pool, pages = draw(2, 9, 16, 2, 64), torch.tensor([8, 0, 3, 5, 1, 4, 7], dtype=torch.int32)
    keys, values = (half[pages.long()].flatten(0, 1)[:context].contiguous() for half in pool)
    q = draw(min(context, 70), 4, 64)
    assert torch.equal(
        workers.attend_pages(q, pool, pages, context, 0.125), workers.attend(q, keys, values, 0.125, True)
    )


@pytest.mark.skipif(attention_workers(draw(2)) is None, reason="torch needs whole multiples of rows for it")
def test_in_the_deterministic_mode_a_prompt_has_the_same_bits_in_any_chunks() -> None:
    q, pool, pages = draw(90, 4, 32), draw(2, 7, 16, 2, 32), torch.tensor([[6, 2, 3, 5, 1, 4]])

    def attend(begin: int, end: int) -> torch.Tensor:
        batch = AttentionBatch.of([ChunkShape(0, end - begin, end)], pages.int())
        return attend_heads(q[begin:end], pool, replace(batch, has_fixed_splits=True), 0.2)

    whole, (keys, values) = attend(0, 90), (half[pages[0]].flatten(0, 1)[:90] for half in pool)
    assert torch.equal(torch.cat([attend(0, 33), attend(33, 34), attend(34, 90)]), whole)
    torch.testing.assert_close(whole.double(), expected(q, keys, values, 0.2, True), atol=0.004, rtol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_see_their_own_tile_alone(dtype: torch.dtype) -> None:
    qkv = draw(2, 20, 3, 2, 32).to(dtype)
    out = attend_tiles(qkv)
    for tile, own in zip(qkv, out, strict=True):
        q, keys, values = tile.unbind(1)
        right = expected(q, keys, values, 32**-0.5, False)
        torch.testing.assert_close(own.double(), right, atol=0.004, rtol=0.01)
        assert torch.equal(attend_tiles(tile.unsqueeze(0))[0], own)
