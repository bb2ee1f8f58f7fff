"""Attention's kernels against the torch reference: in Triton's interpreter, or on the GPU where there is one."""

import dataclasses

import pytest
import torch

from vl2.ops.attention import reference
from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.rope import reference as rope_reference
from vl2.ops.rope.table import rope_table
from vl2.ops.saturate import FLOAT8

kernel = pytest.importorskip("vl2.ops.attention.kernel", reason="Triton is not installed")
kernel_mla = pytest.importorskip("vl2.ops.attention.kernel_mla", reason="Triton is not installed")

PAGE_SIZE, SPLIT = 4, 32
SPARE_ROWS = 3  # rows after the last chunk
TOLERANCES = {
    torch.float32: dict(atol=2e-6, rtol=1e-5),
    torch.float16: dict(atol=2e-3, rtol=2e-3),
    torch.bfloat16: dict(atol=2e-2, rtol=2e-2),  # the interpreter cuts off where a GPU rounds
}
DECODE = [(context, 1) for context in (1, 5, 31, 32, 33, 64, 97)]
MIXED = [(40, 1), (70, 37), (33, 33), (1, 1), (9, 2)]
FRESH = [(70, 70), (33, 33), (1, 1), (17, 17)]
DECODES_FIRST = [(40, 1), (9, 1), (70, 37), (33, 33), (41, 1)]


@pytest.fixture(autouse=True)
def short_splits(monkeypatch):
    torch.manual_seed(0)
    for tiles in (kernel.TILES, kernel.FLOAT32_TILES):
        for name, tile in tiles.items():
            monkeypatch.setitem(tiles, name, dataclasses.replace(tile, block_n=16))
    monkeypatch.setattr(kernel, "FIXED_SPLIT", SPLIT)


def make_batch(shapes: list[tuple[int, int]], device: torch.device) -> tuple[AttentionBatch, torch.Tensor, int]:
    """(context, rows) of each chunk → batch, the slot of every position, pages. Pages lie in no order."""
    counts = [-(-context // PAGE_SIZE) for context, _ in shapes]
    pages, num_pages = torch.randperm(sum(counts) + 2)[: sum(counts)], sum(counts) + 2
    tables = torch.full((len(shapes), max(counts) + 1), num_pages + 1000, dtype=torch.int32)  # no such page
    chunks, slots, row = [], [], 0
    for table, own, (context, rows) in zip(tables, pages.split(counts), shapes, strict=True):
        table[: len(own)] = own
        slots.append((own[:, None] * PAGE_SIZE + torch.arange(PAGE_SIZE)).flatten()[:context])
        chunks.append(ChunkShape(row, rows, context))
        row += rows
    return AttentionBatch.of(chunks, tables.to(device)), torch.cat(slots).to(device), num_pages


def poisoned(num_pages: int, slots: torch.Tensor, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    """A pool whose rows are NaN but at the slots of some sequence."""
    pool = torch.full((num_pages, PAGE_SIZE, *shape), float("nan"), device=slots.device, dtype=dtype)
    pool.flatten(0, 1)[slots] = torch.randn(len(slots), *shape, device=slots.device).to(dtype)
    return pool


def head_case(shapes, heads, kv_heads, dim, dtype, device):
    batch, slots, num_pages = make_batch(shapes, device)
    pool = torch.stack([poisoned(num_pages, slots, kv_heads, dim, dtype=dtype) for _ in range(2)])
    q = torch.randn(sum(rows for _, rows in shapes) + SPARE_ROWS, heads, dim, device=device).to(dtype)
    return q, pool, batch


def latent_case(shapes, heads, rank, dtype, device, nope=12, rope=6, value=20):
    """The arguments of attend_mla. Rows of 16-bit numbers begin at multiples of 16 bytes, as all models have them."""
    if dtype != torch.float32:
        nope, rope, value = 16, 8, 24
    batch, slots, num_pages = make_batch(shapes, device)
    pool = poisoned(num_pages, slots, rank + rope, dtype=dtype)
    own = [torch.arange(context - rows, context) for context, rows in shapes] + [torch.zeros(SPARE_ROWS).long()]
    positions, table = torch.cat(own).to(device), rope_table(rope, 100, 1e4, None, device)
    q = torch.randn(len(positions), heads, nope + rope, device=device).to(dtype)
    kv_b = (torch.randn(heads * (nope + value), rank, device=device) / 4).to(dtype)
    return q, kv_b, pool, table, positions, batch, 0.2


def check_latent(arguments):
    out, expected = kernel_mla.attend_mla(*arguments), reference.attend_mla(*arguments)
    dtype = arguments[0].dtype
    assert out.dtype == dtype
    tolerance = TOLERANCES[dtype] if dtype == torch.float32 else dict(atol=5e-2, rtol=5e-2)
    torch.testing.assert_close(out[:-SPARE_ROWS], expected[:-SPARE_ROWS], **tolerance)
    assert not out[-SPARE_ROWS:].any()


@pytest.mark.parametrize("shapes", [DECODE, MIXED], ids=["decode", "mixed"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dtype"),
    [
        (4, 4, 12, torch.float32),
        (6, 2, 16, torch.float32),  # grouped, and no power of two
        (2, 1, 24, torch.bfloat16),
        (2, 2, 8, torch.float16),
    ],
)
def test_attend_heads_equals_the_reference(shapes, heads, kv_heads, dim, dtype, device):
    q, pool, batch = head_case(shapes, heads, kv_heads, dim, dtype, device)
    out = kernel.attend_heads(q, pool, batch, dim**-0.5)
    expected = reference.attend_heads(q, pool, batch, dim**-0.5)
    assert out.dtype == dtype
    torch.testing.assert_close(out[:-SPARE_ROWS], expected[:-SPARE_ROWS], **TOLERANCES[dtype])
    assert not out[-SPARE_ROWS:].any()


@pytest.mark.parametrize("shapes", [DECODE, MIXED], ids=["decode", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_cache_in_float8_is_read_by_all_kernels(shapes, dtype, device, monkeypatch):
    for kv_heads in (2, 6):  # grouped; one query head each, which has a kernel of its own
        q, pool, batch = head_case(shapes, 6, kv_heads, 24, dtype, device)
        pool = pool.to(FLOAT8)
        out, expected = (ops.attend_heads(q, pool, batch, 0.2) for ops in (kernel, reference))
        torch.testing.assert_close(out[:-SPARE_ROWS], expected[:-SPARE_ROWS], **TOLERANCES[dtype])
        assert not out[-SPARE_ROWS:].any()
    for min_rows in (1, 1000):  # MLA: expanded, absorbed
        monkeypatch.setattr(kernel_mla, "MIN_ROWS", min_rows)
        q, kv_b, pool, *others = latent_case(shapes, 3, 24, dtype, device)
        check_latent((q, kv_b, pool.to(FLOAT8), *others))


@pytest.mark.parametrize("name", ["decode_heads", "decode_single"])
@pytest.mark.parametrize("last_adds", [False, True])
@pytest.mark.parametrize("programs", [1, 60, 1000])
def test_splits_of_heads_in_any_number_give_the_same(programs, last_adds, name, device, monkeypatch):
    tile = dataclasses.replace(kernel.FLOAT32_TILES[name], programs=programs, last_adds=last_adds)
    monkeypatch.setitem(kernel.FLOAT32_TILES, name, tile)
    q, pool, batch = head_case(DECODE, 6, 6 if name == "decode_single" else 2, 16, torch.float32, device)
    pool = pool.to(FLOAT8) if name == "decode_single" else pool
    out, expected = (ops.attend_heads(q, pool, batch, 0.2) for ops in (kernel, reference))
    torch.testing.assert_close(out[:-SPARE_ROWS], expected[:-SPARE_ROWS], **TOLERANCES[torch.float32])
    assert not out[-SPARE_ROWS:].any()
    assert not kernel.arrival_counters(out.device).any()


@pytest.mark.parametrize(
    ("shapes", "dtype", "programs", "last_adds"),
    [(DECODE, torch.float32, 1, True), (DECODE, torch.float16, 200, True), (MIXED, torch.float32, 200, False)],
)
def test_a_cache_in_float8_is_read_in_lanes(shapes, dtype, programs, last_adds, device, monkeypatch):
    tile = kernel.Tile(block_n=8, num_warps=4, num_stages=1, programs=programs, last_adds=last_adds)
    for tiles in (kernel.TILES, kernel.FLOAT32_TILES):
        monkeypatch.setitem(tiles, "decode_single", tile)
    q, pool, batch = head_case(shapes, 6, 6, 12, dtype, device)
    pool = pool.to(FLOAT8)
    out, expected = (ops.attend_heads(q, pool, batch, 0.2) for ops in (kernel, reference))
    torch.testing.assert_close(out[:-SPARE_ROWS], expected[:-SPARE_ROWS], **TOLERANCES[dtype])
    assert not out[-SPARE_ROWS:].any()
    assert not kernel.arrival_counters(out.device).any()


@pytest.mark.parametrize("adder", ["last", "kernel", "expand"])
@pytest.mark.parametrize("programs", [1, 60, 1000])
def test_splits_of_latent_rows_in_any_number_give_the_same(programs, adder, device, monkeypatch):
    tile = dataclasses.replace(kernel.FLOAT32_TILES["decode_latent"], programs=programs, last_adds=adder == "last")
    monkeypatch.setitem(kernel.FLOAT32_TILES, "decode_latent", tile)
    monkeypatch.setattr(kernel_mla, "FEW_ROWS", 100 if adder == "expand" else 0)
    check_latent(latent_case(DECODE, 5, 24, torch.float32, device))
    assert not kernel.arrival_counters(device).any()


@pytest.mark.parametrize("shapes", [DECODES_FIRST, MIXED, FRESH, DECODE], ids=["first", "one", "none", "all"])
def test_kernels_find_the_leading_decodes_where_the_host_does_not_know_them(shapes, device):
    q, pool, batch = head_case(shapes, 4, 2, 16, torch.float32, device)
    # As in a graph: the table has room for more chunks than there are, some of whose numbers are numbers of rows.
    filled = dataclasses.replace(
        AttentionBatch(
            (),
            *(batch.block_tables.repeat(9, 1)[: len(shapes) + 30], batch.query_starts, batch.context_lengths),
            len(q),
        ),
        query_starts=torch.nn.functional.pad(batch.query_starts, (0, 30), value=int(batch.query_starts[-1])),
        context_lengths=torch.nn.functional.pad(batch.context_lengths, (0, 30)),
        may_decode=True,
    )
    out, expected = kernel.attend_heads(q, pool, filled, 0.2), reference.attend_heads(q, pool, batch, 0.2)
    torch.testing.assert_close(out[:-SPARE_ROWS], expected[:-SPARE_ROWS], **TOLERANCES[torch.float32])


@pytest.mark.parametrize("num_decodes", [0, 2])
def test_decoding_rows_give_the_same_by_the_prefill_kernel(num_decodes, device):
    q, pool, batch = head_case(DECODES_FIRST, 4, 2, 16, torch.float32, device)
    out, expected = (
        kernel.attend_heads(q, pool, dataclasses.replace(batch, num_decodes=num), 0.2) for num in (num_decodes, 0)
    )
    torch.testing.assert_close(out, expected, **TOLERANCES[torch.float32])


@pytest.mark.parametrize("max_query_rows", [1, 2])
def test_a_row_has_the_same_bits_alone_and_among_others(max_query_rows, device):
    q, pool, batch = head_case(DECODE, 2, 2, 16, torch.float32, device)
    changes = dict(max_query_rows=max_query_rows, has_fixed_splits=True)
    whole = kernel.attend_heads(q, pool, dataclasses.replace(batch, **changes), 0.2)
    for idx, (context, _) in enumerate(DECODE):
        alone = AttentionBatch.of([ChunkShape(0, 1, context)], batch.block_tables[idx : idx + 1].contiguous())
        out = kernel.attend_heads(q[idx : idx + 1], pool, dataclasses.replace(alone, **changes), 0.2)
        assert torch.equal(out[0], whole[idx])


@pytest.mark.parametrize("shapes", [DECODE, MIXED], ids=["decode", "mixed"])
def test_queries_of_mla_may_be_part_of_wider_rows(shapes, device):
    """As a product leaves them that made latent rows, too; the bits are those of queries by themselves."""
    q, *rest, batch, scale = latent_case(shapes, 3, 24, torch.float32, device)
    batch = dataclasses.replace(batch, has_fixed_splits=True)
    wide = torch.cat((torch.full((len(q), 30), float("nan"), device=device), q.flatten(1)), 1)[:, 30:].unflatten(
        1, (3, -1)
    )
    assert not wide.is_contiguous()
    assert torch.equal(kernel_mla.attend_mla(wide, *rest, batch, scale), kernel_mla.attend_mla(q, *rest, batch, scale))


@pytest.mark.parametrize("max_query_rows", [1, 2])
def test_chunks_without_a_context_do_nothing(max_query_rows, device):
    """As in a captured graph that has room for more sequences than a step holds."""
    q, pool, batch = head_case(DECODE, 2, 2, 16, torch.float32, device)
    lengths = batch.context_lengths.clone()
    lengths[3:] = 0
    out = kernel.attend_heads(
        q, pool, dataclasses.replace(batch, context_lengths=lengths, max_query_rows=max_query_rows), 0.2
    )
    expected = reference.attend_heads(q, pool, batch, 0.2)
    torch.testing.assert_close(out[:3], expected[:3], **TOLERANCES[torch.float32])
    assert not out[3:].any()


def test_rows_of_no_chunk_alone_are_zeros(device):
    tables = torch.zeros(0, 1, dtype=torch.int32, device=device)
    batch = AttentionBatch.of([], tables)
    pool = torch.full((2, 2, PAGE_SIZE, 2, 16), float("nan"), device=device)
    assert not kernel.attend_heads(torch.randn(2, 2, 16, device=device), pool, batch, 0.2).any()


def test_float16_results_stay_finite(device):
    q, pool, batch = head_case([(20, 1), (20, 1)], 2, 2, 16, torch.float16, device)
    pool = torch.where(pool.isnan(), pool, 65504.0)
    assert kernel.attend_heads(q, pool, batch, 0.2)[:2].isfinite().all()
    assert kernel.attend_heads(q, pool, dataclasses.replace(batch, max_query_rows=2), 0.2)[:2].isfinite().all()


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(
    ("shapes", "flags", "min_rows", "expands"),
    [
        (DECODE, {}, 1, False),
        (MIXED, {}, 1000, False),
        (MIXED, {}, 1, True),
        (DECODES_FIRST, {"num_decodes": 2}, 1000, False),
        (DECODES_FIRST, {"num_decodes": 2}, 1, True),
        (FRESH, {"is_fresh": True}, 1000, True),
    ],
)
def test_attend_mla_equals_the_reference(shapes, flags, min_rows, expands, dtype, device, monkeypatch):
    prefills = []
    monkeypatch.setattr(kernel_mla, "MIN_ROWS", min_rows)
    for name in ("_prefill_expanded", "_prefill_absorbed"):
        monkeypatch.setattr(kernel_mla, name, noting(prefills, getattr(kernel_mla, name)))
    *arguments, batch, scale = latent_case(shapes, 3, 24, dtype, device)
    check_latent((*arguments, dataclasses.replace(batch, **flags), scale))
    assert prefills == ([] if shapes == DECODE else ["_prefill_expanded" if expands else "_prefill_absorbed"])


@pytest.mark.parametrize(("dtype", "cache"), [(torch.float32, torch.float32), (torch.float16, FLOAT8)])
@pytest.mark.parametrize("are_joined", [False, True], ids=["two products", "one product"])
def test_a_decoding_step_writes_its_rows_and_sees_them(are_joined, cache, dtype, device):
    """Latents and queries may be columns of one product's rows."""
    for shapes in (DECODE, DECODE[-1:]):
        q, kv_b, pool, table, positions, batch, scale = latent_case(shapes, 3, 24, dtype, device)
        q, positions, pool = q[:-SPARE_ROWS].contiguous(), positions[:-SPARE_ROWS], pool.to(cache)
        own = torch.randn(len(q), pool.shape[2], device=device).to(dtype)
        if are_joined:
            both = torch.cat((own, q.flatten(1)), 1)
            own, q = both[:, : own.shape[1]], both[:, own.shape[1] :].unflatten(1, q.shape[1:])
        weight = torch.rand(24, device=device).to(dtype)
        pages = batch.block_tables[torch.arange(len(q), device=device), positions // PAGE_SIZE]
        slots = pages.long() * PAGE_SIZE + positions % PAGE_SIZE
        expected_pool = pool.clone()
        rope_reference.write_latent(own, weight, 1e-6, table, positions, slots, expected_pool)
        expected = reference.attend_mla(q, kv_b, expected_pool, table, positions, batch, scale)
        out = kernel_mla.decode_mla(own, weight, 1e-6, q, kv_b, pool, table, positions, slots, batch, scale)
        tolerance = TOLERANCES[dtype] if dtype == torch.float32 else dict(atol=5e-2, rtol=5e-2)
        torch.testing.assert_close(out, expected, **tolerance)


def noting(names, function):
    def call(*arguments):
        names.append(function.__name__)
        return function(*arguments)

    return call
