"""What lies between a prompt's products: the native ops are the reference's, and a row's bits are its own."""

from __future__ import annotations

import pytest
import torch

from tests.ops.native.builds import needs_library
from vl2.ops import native_backend, torch_backend
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.rope.native import rotate_queries
from vl2.ops.rope.reference import rotate_pairs
from vl2.ops.rope.table import rope_table
from vl2.ops.rows import RowRounding

pytestmark = needs_library
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return dict(atol=1e-5, rtol=1e-5) if dtype == torch.float32 else dict(atol=0.01, rtol=0.01)


def make_experts(width: int, inner: int, has_shared: bool, dtype: torch.dtype) -> ExpertWeights:
    gate_up, down = draw(4, 2 * inner, width) / width**0.5, draw(4, width, inner) / inner**0.5
    shared = (gate_up[0].to(dtype), down[0].to(dtype)) if has_shared else (None, None)
    return ExpertWeights(gate_up.to(dtype), down.to(dtype), *shared)


@DTYPES
@pytest.mark.parametrize("width", [1, 40, 129])
def test_swiglu(width: int, dtype: torch.dtype) -> None:
    gate_up = 4 * draw(3, 7, 2 * width).to(dtype)
    right = torch_backend.swiglu(gate_up.double())
    torch.testing.assert_close(native_backend.swiglu(gate_up).double(), right, **tolerance(dtype))


@DTYPES
@pytest.mark.parametrize("width", [16, 100])
def test_the_residual_is_added_and_rounded_before_the_norm(width: int, dtype: torch.dtype) -> None:
    x, delta, weight = draw(37, width).to(dtype), draw(37, width).to(dtype) / 3, draw(width).to(dtype)
    sums, normed = native_backend.add_rms_norm(x, delta, weight, 1e-6)
    assert torch.equal(sums, x + delta)
    right = torch_backend.rms_norm(sums.double(), weight.double(), 1e-6)
    torch.testing.assert_close(normed.double(), right, **tolerance(dtype))
    assert torch.equal(native_backend.rms_norm(sums, weight, 1e-6), normed)


@DTYPES
@pytest.mark.parametrize("rounding", [RowRounding(), RowRounding(multiple=4, is_exact=True)])
@pytest.mark.parametrize("has_shared", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 21])
def test_experts(num_tokens: int, has_shared: bool, rounding: RowRounding, dtype: torch.dtype) -> None:
    experts, x = make_experts(40, 24, has_shared, dtype), draw(num_tokens, 40).to(dtype)
    weights, ids = draw(num_tokens, 4).softmax(-1).topk(2)
    given = (x, ids, weights.contiguous(), experts, rounding)
    out, right = native_backend.mix_experts(*given), torch_backend.mix_experts(*given)
    torch.testing.assert_close(out, right, **tolerance(dtype))


def test_a_tokens_experts_do_not_depend_on_other_tokens() -> None:
    experts, x = make_experts(40, 24, True, torch.float32), draw(21, 40)
    weights, ids = draw(21, 4).softmax(-1).topk(2)
    rounding = RowRounding(multiple=16, is_exact=True)
    whole = native_backend.mix_experts(x, ids, weights, experts, rounding)
    for begin, end in [(0, 1), (3, 9), (9, 21)]:
        own = slice(begin, end)
        assert torch.equal(native_backend.mix_experts(x[own], ids[own], weights[own], experts, rounding), whole[own])


@DTYPES
@pytest.mark.parametrize("has_delta", [False, True])
def test_layer_norm(has_delta: bool, dtype: torch.dtype) -> None:
    x, weight, bias = 3 + draw(2, 9, 40).to(dtype), draw(40).to(dtype), draw(41)[1:].to(dtype)
    delta = draw(2, 9, 40).to(dtype) / 3 if has_delta else None
    sums, normed = native_backend.add_layer_norm(x, delta, weight, bias)
    assert torch.equal(sums, x if delta is None else x + delta)
    _, right = torch_backend.add_layer_norm(sums.double(), None, weight.double(), bias.double())
    torch.testing.assert_close(normed.double(), right.double(), **tolerance(dtype))


@DTYPES
def test_heads_are_rotated_and_written(dtype: torch.dtype) -> None:
    heads, kv_heads, dim, pages, page_size = 4, 2, 8, 3, 16
    qkv = draw(21, 100)[:, : (heads + 2 * kv_heads) * dim].to(dtype)  # rows may be strided
    rope = rope_table(dim, 64, 10000.0, None, "cpu")
    positions, slots = torch.arange(5, 26), torch.randperm(pages * page_size)[:21]
    pool, right_pool = (torch.zeros(2, pages, page_size, kv_heads, dim, dtype=dtype) for _ in range(2))
    q = native_backend.write_heads(qkv, rope, positions, slots, pool)
    right = torch_backend.write_heads(qkv, rope, positions, slots, right_pool)
    torch.testing.assert_close(q, right, **tolerance(dtype))
    torch.testing.assert_close(pool, right_pool, **tolerance(dtype))


@DTYPES
def test_latent_rows_are_normed_rotated_and_written(dtype: torch.dtype) -> None:
    rank, rope_dim, pages, page_size = 20, 6, 3, 16
    rows = draw(21, 40)[:, : rank + rope_dim].to(dtype)  # may be strided
    given = ((1 + draw(rank) / 4).to(dtype), 1e-6, rope_table(rope_dim, 64, 10000.0, None, "cpu"), torch.arange(5, 26))
    slots = torch.randperm(pages * page_size)[:21]
    pool, right_pool = (torch.zeros(pages, page_size, rank + rope_dim, dtype=dtype) for _ in range(2))
    native_backend.write_latent(rows, *given, slots, pool)
    torch_backend.write_latent(rows, *given, slots, right_pool)
    torch.testing.assert_close(pool, right_pool, atol=0.02, rtol=0.02)  # it rounds once
    assert torch.equal(pool == 0, right_pool == 0)  # nothing else is written


@DTYPES
def test_the_last_numbers_of_each_query_are_rotated(dtype: torch.dtype) -> None:
    q, rope = draw(9, 3, 14).to(dtype), rope_table(4, 64, 10000.0, None, "cpu")
    positions = torch.arange(7, 16)
    rotated = rotate_queries(q, rope, positions)
    assert torch.equal(rotated[..., :10], q[..., :10])
    right = rotate_pairs(q[..., 10:], rope.rows(positions))
    torch.testing.assert_close(rotated[..., 10:], right, **tolerance(dtype))
