"""Kernels of the deterministic mode: right, and a row's bits do not depend on the others."""

import functools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.ops.test_ops import moe_config
from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.attention.kernel import attend_heads
from vl2.ops.attention.kernel_mla import attend_mla
from vl2.ops.exact_linear import kernel
from vl2.ops.experts import exact, kernel_common, reference
from vl2.ops.experts import kernel as experts_kernel
from vl2.ops.experts.mixture import add_up
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.gate import kernel as gate_kernel
from vl2.ops.gate import reference as gate_reference
from vl2.ops.linear import MOST_JOINED_ROWS
from vl2.ops.rope.table import rope_table

WIDTH, OUT = 72, 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("num_rows", [1, 5, 33, 130])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_linear_equals_the_reference(device: torch.device, dtype: torch.dtype, num_rows: int, has_bias: bool):
    torch.manual_seed(num_rows)
    rows = torch.randn(num_rows, 2 * WIDTH, device=device).to(dtype)[:, :WIDTH]  # rows need not lie side by side
    weight, bias = torch.randn(OUT, WIDTH, device=device).to(dtype), torch.randn(OUT, device=device).to(dtype)
    bias = bias if has_bias else None
    expected = F.linear(rows.double(), weight.double(), None if bias is None else bias.double())
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(kernel.linear(rows, weight, bias).double(), expected, atol=tolerance, rtol=1e-3)
    wide = kernel.logits(rows, weight)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide, F.linear(rows.float(), weight.float()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tile", kernel.TILES)
def test_every_tile_computes_the_same_product(device: torch.device, tile: kernel.LinearTile):
    x, weight = kernel.cancelling(20, 70, 96, torch.float16, device)
    out = torch.empty(len(x), len(weight), dtype=torch.float32, device=device)
    kernel._launch(x, weight, None, out, tile)
    torch.testing.assert_close(out.double(), x.double() @ weight.double().T, atol=1e-4, rtol=0)


def test_sums_that_cancel_show_the_order_in_nearly_every_number():
    x, weight = kernel.cancelling(50, 50, 512, torch.bfloat16, torch.device("cpu"))
    products = x.float()[:, None] * weight.float()[None]
    forward = functools.reduce(torch.add, products.unbind(-1))
    backward = functools.reduce(torch.add, products.flip(-1).unbind(-1))
    assert (forward != backward).float().mean() > 0.9


def test_tiles_are_large_where_all_of_the_gpu_still_has_work():
    choose = kernel.choose_tile
    assert choose(kernel.TILES, 1, 3840, 132).tokens == 16
    assert choose(kernel.TILES, 8192, 3840, 132) == kernel.LinearTile(256, 128, 64, 8, 3)
    assert choose(kernel.TILES, 8192, 64, 132).tokens < 256
    assert choose(kernel.TILES[:1], 1, 3840, 132) == kernel.TILES[0], "whatever agrees is enough"


@pytest.mark.parametrize("num_rows", [1, 5, MOST_JOINED_ROWS + 1])
def test_two_weights_that_lie_together_are_one_product_with_the_same_bits(device: torch.device, num_rows: int):
    torch.manual_seed(0)
    x, both = torch.randn(num_rows, 64, device=device), torch.randn(80, 64, device=device)
    first, second = both.split((24, 56))
    outs = kernel.linear_both(x, first, second)
    assert (outs[0].stride(0) == len(both)) == (num_rows <= MOST_JOINED_ROWS)
    for out, weight in zip(outs, (first, second), strict=True):
        assert torch.equal(out, kernel.linear(x, weight)) and torch.equal(out, kernel.linear(x, weight.clone()))


def test_on_a_gpu_a_row_of_a_linear_has_the_same_bits_in_any_number(device: torch.device):
    if device.type == "cpu":
        pytest.skip("NumPy's products, which the interpreter takes, do depend on the row")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        x, weight = kernel.cancelling(700, 1000, 1280, dtype, device)
        whole = kernel.linear(x, weight, out_dtype=torch.float32)
        for count in (1, 2, 7, 16, 17, 64, 100, 128, 300, 512):
            assert torch.equal(kernel.linear(x[:count], weight, out_dtype=torch.float32), whole[:count]), (dtype, count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 37])
def test_the_router_has_one_kernel_for_all_numbers_of_tokens(device: torch.device, dtype: torch.dtype, num_tokens: int):
    config = moe_config(num_experts=10, num_active=3)
    x, weight = torch.randn(num_tokens, 48, device=device).to(dtype), torch.randn(10, 48, device=device)
    ids, weights = gate_kernel.exact_route(x, weight, None, config)
    expected_ids, expected_weights = gate_reference.route(x, weight, None, config)
    assert torch.equal(ids.long(), expected_ids)
    torch.testing.assert_close(weights, expected_weights, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("num_tokens", [1, 30])
def test_experts_take_a_tile_that_agrees(device: torch.device, num_tokens: int, monkeypatch):
    small = kernel_common.Tile(32, 16, 16, 16, 16, 4, 2)
    monkeypatch.setattr(exact, "SOME", small)
    monkeypatch.setattr(exact, "agreeing_tiles", lambda device, dtype: (small,))
    used = []

    def watched(*arguments):
        used.append(arguments[-1])
        return experts_kernel.mix_tiled(*arguments)

    monkeypatch.setattr(exact, "mix_tiled", watched)
    monkeypatch.setattr(exact, "boxes_agree", lambda device, dtype: True)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, device=device) * 0.3).half()

    experts = ExpertWeights(draw(4, 32, 24), draw(4, 24, 16), draw(64, 24), draw(24, 32))
    ids = torch.stack([torch.randperm(4)[:2] for _ in range(num_tokens)]).int().to(device)
    x, weights = draw(num_tokens, 24), torch.rand(num_tokens, 2, device=device)
    out = add_up(exact.mix_experts(x, ids, weights, experts))
    assert used == [small]
    torch.testing.assert_close(out, reference.mix_experts(x, ids.long(), weights, experts), atol=2e-3, rtol=2e-3)


def test_experts_whose_boxes_add_up_otherwise_go_without(device: torch.device, monkeypatch, caplog):
    def tiled(x, ids, weights, experts, tile):
        mixture = exact.mix_sorted(x, ids, weights, experts, tile)
        return replace(mixture, results=mixture.results * (1 + 2**-7))

    small = kernel_common.Tile(32, 64, 64, 64, 64, 4, 2)
    monkeypatch.setattr(exact, "TRIED", (20, 128))
    for name in ("SOME", "MANY"):
        monkeypatch.setattr(exact, name, small)
    dtype = torch.float16
    exact.boxes_agree.cache_clear()
    assert exact.boxes_agree(device, dtype) and not caplog.text
    exact.boxes_agree.cache_clear()
    monkeypatch.setattr(exact, "mix_tiled", tiled)
    assert not exact.boxes_agree(device, dtype) and "copy engine" in caplog.text
    exact.boxes_agree.cache_clear()


def rows_agree(compute, num_rows: int) -> None:
    """Whether the first rows have the same bits in any number of them."""
    whole = compute(num_rows)
    for count in (1, 2, 7, 16, 17, 33, 64, 100, 129, 256):
        for one, other in zip(compute(count), whole, strict=True):
            assert torch.equal(one, other[: len(one)]), count


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_gpu_a_row_of_router_and_experts_has_the_same_bits_in_any_number(device: torch.device, dtype: torch.dtype):
    if device.type == "cpu":
        pytest.skip("NumPy's products, which the interpreter takes, do depend on the row")
    torch.manual_seed(0)
    config, width, inner = moe_config(num_experts=64, num_active=6), 1280, 896

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, device=device) * 0.03).to(dtype)

    experts = ExpertWeights(
        draw(64, 2 * inner, width), draw(64, width, inner), draw(4 * inner, width), draw(width, 2 * inner)
    )
    x, router = torch.randn(3000, width, device=device).to(dtype), torch.randn(64, width, device=device) * 0.1

    def compute(count: int) -> tuple[torch.Tensor, ...]:
        ids, weights = gate_kernel.exact_route(x[:count], router, None, config)
        return ids, weights, add_up(exact.mix_experts(x[:count], ids, weights, experts))

    rows_agree(compute, len(x))


@pytest.mark.parametrize("is_mla", [False, True])
def test_on_a_gpu_attention_has_the_same_bits_however_prompts_are_cut_and_answers_batched(device, is_mla: bool):
    if device.type == "cpu":
        pytest.skip("NumPy's products, which the interpreter takes, do depend on the row")
    torch.manual_seed(0)
    page, most, heads, nope, turned, value, rank = 16, 1100, 16, 128, 64, 128, 512
    tables = torch.arange(-(-most // page), dtype=torch.int32, device=device)[None]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).bfloat16()

    q = draw(most, heads, nope + turned if is_mla else 128)
    pool = draw(tables.shape[1], page, rank + turned) if is_mla else draw(2, tables.shape[1], page, heads, 128)
    kv_b, rope = draw(heads * (nope + value), rank) * 0.05, rope_table(turned, 4096, 10000.0, None, device)

    def attend(rows: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
        batch = replace(batch, has_fixed_splits=True)
        if not is_mla:
            return attend_heads(rows, pool, batch, 0.09).flatten(1)
        return attend_mla(rows, kv_b, pool, rope, torch.zeros(len(rows), device=device), batch, 0.07)

    def prompt(start: int, end: int) -> torch.Tensor:
        batch = AttentionBatch.of([ChunkShape(0, end - start, end)], tables)
        return attend(q[start:end].contiguous(), replace(batch, max_query_rows=max(2, end - start)))

    whole = prompt(0, most)
    for size in (1, 7, 64, 300):
        for start in (0, 5, 700):
            assert torch.equal(prompt(start, start + size), whole[start : start + size]), (size, start)
    contexts = [1, 17, 255, 256, 257, 600, most] * 19
    rows = draw(len(contexts), heads, q.shape[2])

    def answers(count: int) -> tuple[torch.Tensor, ...]:
        chunks = [ChunkShape(row, 1, context) for row, context in enumerate(contexts[:count])]
        return (attend(rows[:count].contiguous(), AttentionBatch.of(chunks, tables.expand(count, -1).contiguous())),)

    rows_agree(lambda count: answers(min(count, len(contexts))), len(contexts))
