"""Attention of prompts and pictures by the native library: right, and a row's bits are its own."""

from __future__ import annotations

import math

import pytest
import torch

from vl2.ops.attention.tiles import attend_tiles
from vl2.ops.native.prompts import attention_workers

WORKERS = attention_workers(torch.empty(2, dtype=torch.bfloat16))
needs_workers = pytest.mark.skipif(WORKERS is None, reason="this processor or this build leaves it to torch")


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


@needs_workers
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
    ],
)
def test_it_is_softmax_attention(
    rows: int, context: int, heads: int, kv_heads: int, dim: int, value_dim: int, is_causal: bool
) -> None:
    assert WORKERS is not None
    q, keys, values = draw(rows, heads, dim), draw(context, kv_heads, dim), draw(context, kv_heads, value_dim)
    out = WORKERS.attend(q, keys, values, dim**-0.5, is_causal)
    right = expected(q, keys, values, dim**-0.5, is_causal)
    torch.testing.assert_close(out.double(), right, atol=0.004, rtol=0.01)  # weights and results are rounded


@needs_workers
def test_large_scores_of_either_sign_stay_finite() -> None:
    assert WORKERS is not None
    q, keys, values = 100 * draw(30, 2, 64), 100 * draw(70, 2, 64), draw(70, 2, 64)
    out = WORKERS.attend(q, keys, values, 1.0, True)
    torch.testing.assert_close(out.double(), expected(q, keys, values, 1.0, True), atol=0.004, rtol=0.01)


@needs_workers
def test_a_row_has_the_same_bits_in_any_chunk_and_whatever_comes_after_it() -> None:
    assert WORKERS is not None
    q, keys, values = draw(100, 2, 64), draw(100, 2, 64), draw(100, 2, 64)
    whole = WORKERS.attend(q, keys, values, 0.125, True)
    for begin, end in [(0, 1), (0, 37), (37, 61), (61, 100)]:
        part = WORKERS.attend(q[begin:end], keys[:end], values[:end], 0.125, True)
        assert torch.equal(part, whole[begin:end]), (begin, end)


@needs_workers
def test_rows_may_be_strided() -> None:
    assert WORKERS is not None
    qkv = draw(40, 3, 2, 64)
    q, keys, values = qkv.unbind(1)
    copied = WORKERS.attend(q.contiguous(), keys.contiguous(), values.contiguous(), 0.125, False)
    assert torch.equal(WORKERS.attend(q, keys, values, 0.125, False), copied)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_see_their_own_tile_alone(dtype: torch.dtype) -> None:
    qkv = draw(2, 20, 3, 2, 32).to(dtype)
    out = attend_tiles(qkv)
    for tile, own in zip(qkv, out, strict=True):
        q, keys, values = tile.unbind(1)
        right = expected(q, keys, values, 32**-0.5, False)
        torch.testing.assert_close(own.double(), right, atol=0.004, rtol=0.01)
        assert torch.equal(attend_tiles(tile.unsqueeze(0))[0], own)
