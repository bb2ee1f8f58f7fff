"""Linears of prompts on matrix units: right for any number of rows and columns, and a row's bits are its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.ops.native.builds import fastest
from tests.ops.native.test_products import run_product
from vl2.core.quantization import WeightScheme
from vl2.model.linear import Linear, QuantizedLinear
from vl2.model.packing import multiplies_natively, pack_weights
from vl2.ops import torch_backend
from vl2.ops.linear import can_pack, pack
from vl2.ops.native.linear import NativeLinear, describe_linear, pack_linear, pack_plain
from vl2.ops.native.short import shortener
from vl2.ops.native.structures import BFLOAT12_BLOCKS

WEIGHT = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)).bfloat16() / 8

pytestmark = [
    pytest.mark.cpu_only,
    pytest.mark.skipif(
        not can_pack(WEIGHT) or pack_linear(WEIGHT) is None,
        reason="the library multiplies where there are matrix units",
    ),
]


@pytest.fixture(params=[1, 2])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def native_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> NativeLinear:
    found = describe_linear(pack(weight), bias)
    if found is None:
        pytest.skip("this torch packs such a weight otherwise")
    return found


@pytest.mark.parametrize("is_gelu", [False, True])
@pytest.mark.parametrize(("out_width", "in_width"), [(64, 32), (100, 96), (160, 288), (33, 544)])
def test_it_is_the_product_rounded_once(out_width: int, in_width: int, is_gelu: bool, num_threads: int) -> None:
    weight, bias = draw(out_width, in_width) / in_width**0.5, draw(out_width)
    own = native_linear(weight, bias)
    for rows in (1, 15, 17, 33, 65, 257):
        x = draw(rows, in_width)
        right = F.linear(x.double(), weight.double(), bias.double())
        right = F.gelu(right, approximate="tanh") if is_gelu else right
        torch.testing.assert_close(own.multiply(x, is_gelu).double(), right, atol=1e-4, rtol=2**-8)


def test_a_row_has_the_same_bits_alone_and_among_others() -> None:
    own, x = native_linear(WEIGHT), draw(300, 64)
    together = own.multiply(x)
    for begin, end in [(0, 1), (1, 18), (18, 60), (60, 300)]:
        assert torch.equal(own.multiply(x[begin:end]), together[begin:end])


@pytest.mark.parametrize("is_short", [False, True])
def test_what_is_not_rounded_are_the_sums_of_a_decoding_step(is_short: bool, num_threads: int) -> None:
    """So a prompt's logits and those of the tokens after it are computed alike."""
    own = pack_plain(draw(300, 96) / 8, shortener() if is_short else None)
    assert own is not None and (own.matrix.layout == BFLOAT12_BLOCKS) == is_short
    x = draw(40, 128)[:, :96]
    sums = own.project(x)
    assert torch.equal(sums, run_product(fastest(), own.matrix, x.float().contiguous()))
    assert torch.equal(own.project(x[3:4]), sums[3:4])
    assert torch.equal(sums.bfloat16(), own.multiply(x))


def test_rows_may_lie_apart_in_more_dimensions_and_be_none() -> None:
    own, x = native_linear(WEIGHT), draw(3, 5, 80)[..., 8:72]
    assert torch.equal(own.multiply(x), own.multiply(x.contiguous()))
    assert own.multiply(x[:0]).shape == (0, 5, 64)


def test_fewer_threads_than_when_it_was_packed_change_nothing(num_threads: int) -> None:
    """Small steps take one (engine/threads.py)."""
    x = draw(40, 64)
    own = native_linear(WEIGHT)
    before = own.multiply(x)
    torch.set_num_threads(3 - num_threads)
    assert torch.equal(own.multiply(x), before)


def test_a_model_with_weights_in_few_bits_leaves_products_to_torch() -> None:
    """Whose sizes are rounded, as each is compiled (engine/runner.py)."""
    plain = nn.Sequential(Linear(64, 64, dtype=torch.bfloat16, device="cpu"))
    pack_weights(plain)
    assert multiplies_natively(plain)
    scheme = WeightScheme(8, None)
    plain.append(QuantizedLinear(64, 64, scheme, torch_backend, dtype=torch.bfloat16, device="cpu"))
    assert not multiplies_natively(plain)
