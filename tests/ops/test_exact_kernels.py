"""Kernels of the deterministic mode: right, and a row's bits do not depend on the others."""

import functools

import pytest
import torch
import torch.nn.functional as F

from tests.ops.test_ops import moe_config
from vl2.ops.exact_linear import kernel
from vl2.ops.experts import exact, kernel_common, reference
from vl2.ops.experts import kernel as experts_kernel
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.gate import kernel as gate_kernel
from vl2.ops.gate import reference as gate_reference

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
        return experts_kernel.mix_sorted(*arguments)

    monkeypatch.setattr(exact, "mix_sorted", watched)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, device=device) * 0.3).half()

    experts = ExpertWeights(draw(4, 32, 24), draw(4, 24, 16), draw(64, 24), draw(24, 32))
    ids = torch.stack([torch.randperm(4)[:2] for _ in range(num_tokens)]).int().to(device)
    x, weights = draw(num_tokens, 24), torch.rand(num_tokens, 2, device=device)
    out = exact.mix_experts(x, ids, weights, experts)
    assert used == [small]
    torch.testing.assert_close(out, reference.mix_experts(x, ids.long(), weights, experts), atol=2e-3, rtol=2e-3)
