"""Rope's kernels against the torch reference: in Triton's interpreter, or on the GPU where there is one."""

import pytest
import torch

from vl2.ops.rope import reference
from vl2.ops.rope.table import rope_table
from vl2.ops.saturate import FLOAT8

kernel = pytest.importorskip("vl2.ops.rope.kernel", reason="Triton is not installed")

NUM_PAGES, PAGE_SIZE = 18, 4
TOLERANCES = {
    torch.float32: dict(atol=1e-5, rtol=1e-5),
    torch.float16: dict(atol=2e-3, rtol=2e-3),
    torch.bfloat16: dict(atol=3e-2, rtol=2e-2),  # the interpreter cuts off where a GPU rounds
}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=lambda dtype: str(dtype)[6:])
ROWS = 19


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def step_of(rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """positions, slots"""
    return torch.randint(1000, (rows,), device=device), torch.randperm(NUM_PAGES * PAGE_SIZE, device=device)[:rows]


def poisoned(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.full(shape, float("nan"), dtype=dtype, device=device)


def assert_close(out: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(out, expected, equal_nan=True, **TOLERANCES[out.dtype])


@DTYPES
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 12), (6, 2, 16), (30, 5, 8)])
def test_write_heads_rotates_and_writes_its_slots_alone(heads, kv_heads, dim, dtype, device):
    table, (positions, slots) = rope_table(dim, 1000, 1e4, None, device), step_of(ROWS, device)
    qkv = torch.randn(ROWS, (heads + 2 * kv_heads) * dim, device=device).to(dtype)
    pools = [poisoned(2, NUM_PAGES, PAGE_SIZE, kv_heads, dim, dtype=dtype, device=device) for _ in range(2)]
    out = kernel.write_heads(qkv, table, positions, slots, pools[0])
    assert_close(out, reference.write_heads(qkv, table, positions, slots, pools[1]))
    assert_close(*pools)


@DTYPES
@pytest.mark.parametrize(("rank", "rope"), [(24, 6), (32, 8)])
def test_write_latent_norms_rotates_and_writes_its_slots_alone(rank, rope, dtype, device):
    table, (positions, slots) = rope_table(rope, 1000, 1e4, None, device), step_of(ROWS, device)
    wide = torch.randn(ROWS, rank + rope + 5, device=device).to(dtype)
    weight = torch.randn(rank, device=device).to(dtype)
    pools = [poisoned(NUM_PAGES, PAGE_SIZE, rank + rope, dtype=dtype, device=device) for _ in range(2)]
    for ops, pool in zip((kernel, reference), pools, strict=True):
        ops.write_latent(wide[:, 5:], weight, 1e-6, table, positions, slots, pool)
    assert_close(*pools)


def test_a_cache_in_float8_is_written_rounded(device):
    table, (positions, slots) = rope_table(8, 1000, 1e4, None, device), step_of(ROWS, device)
    qkv = torch.randn(ROWS, 6 * 8, device=device)
    qkv[0] = 1000.0  # beyond what float8 holds
    pools = [poisoned(2, NUM_PAGES, PAGE_SIZE, 2, 8, dtype=FLOAT8, device=device) for _ in range(2)]
    rows = [poisoned(NUM_PAGES, PAGE_SIZE, 24, dtype=FLOAT8, device=device) for _ in range(2)]
    for ops, pool, latent in zip((kernel, reference), pools, rows, strict=True):
        ops.write_heads(qkv, table, positions, slots, pool)
        ops.write_latent(qkv[:, :24], torch.ones(16, device=device), 1e-6, table, positions, slots, latent)
    for own, expected in ((pools[0], pools[1]), (rows[0], rows[1])):
        torch.testing.assert_close(own.float(), expected.float(), equal_nan=True, atol=2**-9, rtol=2**-3)
        assert float(expected.float().nan_to_num().abs().max()) <= 448


@DTYPES
@pytest.mark.parametrize("rows", [1, 16, ROWS, 70])
def test_absorb_queries_and_expand_values_equal_the_reference(rows, dtype, device):
    heads, nope, rope, value, rank = 3, 12, 6, 24, 40
    table, positions = rope_table(rope, 1000, 1e4, None, device), torch.randint(1000, (rows,), device=device)
    kv_b = torch.randn(heads, nope + value, rank, device=device).to(dtype) / 4
    keys, values = kv_b.split((nope, value), dim=1)
    q = torch.randn(rows, heads, nope + rope, device=device).to(dtype)
    expected = reference.absorb_queries(q, keys, table, positions)[..., :rank]  # the kernels' rest is rotated later
    assert_close(kernel.absorb_queries(q, keys), expected)
    latent = torch.randn(rows, heads, rank, device=device).to(dtype)
    assert_close(kernel.expand_values(latent, values), reference.expand_values(latent, values))


@DTYPES
@pytest.mark.parametrize("rows", [1, 16, ROWS, 70])
def test_cache_rows_and_absorbed_queries_of_few_tokens_in_one_launch(rows, dtype, device):
    heads, nope, rope, rank = 3, 12, 6, 40
    table, (positions, slots) = rope_table(rope, 1000, 1e4, None, device), step_of(rows, device)
    keys = torch.randn(heads, nope, rank, device=device).to(dtype)
    latent, weight = torch.randn(rows, rank + rope, device=device).to(dtype), torch.ones(rank, device=device).to(dtype)
    q = torch.randn(rows, heads, nope + rope, device=device).to(dtype)
    pools = [poisoned(NUM_PAGES, PAGE_SIZE, rank + rope, dtype=dtype, device=device) for _ in range(2)]
    own, other = ((latent, weight, 1e-6, table, positions, slots, pool) for pool in pools)
    absorbed = kernel.write_and_absorb(*own, q, keys)
    kernel.write_latent(*other)
    assert_close(*pools)
    assert_close(absorbed, kernel.absorb_queries(q, keys))
    beside_others = torch.cat((latent, q.flatten(1)), 1)[:, rank + rope :].unflatten(1, q.shape[1:])
    assert torch.equal(kernel.write_and_absorb(*own, beside_others, keys), absorbed)
    assert torch.equal(kernel.absorb_queries(beside_others, keys), kernel.absorb_queries(q, keys))


def test_float16_results_saturate(device):
    table, positions = rope_table(8, 10, 1e4, None, device), torch.ones(2, dtype=torch.int64, device=device)
    large = torch.full((2, 3 * 8), 6e4, dtype=torch.float16, device=device)
    pool = torch.zeros(2, 1, PAGE_SIZE, 1, 8, dtype=torch.float16, device=device)
    assert (
        kernel.write_heads(large, table, positions, positions - torch.arange(2, device=device), pool).isfinite().all()
    )
    assert pool.isfinite().all()
    weights = torch.full((1, 16, 16), 6e4, dtype=torch.float16, device=device)
    q = torch.full((2, 1, 24), 6e4, dtype=torch.float16, device=device)
    assert kernel.absorb_queries(q, weights).isfinite().all()
    assert kernel.expand_values(weights[:, :2].transpose(0, 1).contiguous(), weights).isfinite().all()
