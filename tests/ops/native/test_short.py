"""bfloat16 weights in 12 bits: whatever numbers they are, products have the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.ops.native.builds import every_bfloat16_build, needs_library, needs_packing
from tests.ops.native.test_products import run_product
from tests.ops.native.test_prompt_experts import draw_experts, draw_tokens, workers_of
from vl2.ops.linear import pack
from vl2.ops.native.builds import load
from vl2.ops.native.matrices import describe_experts, describe_strips, lay_in_blocks
from vl2.ops.native.short import Shortener
from vl2.ops.native.structures import BFLOAT12_BLOCKS, BFLOAT16_BLOCKS, Matrix

pytestmark = [pytest.mark.cpu_only, needs_library, needs_packing]

SHAPES = [(64, 192), (128, 96), (192, 160), (1792, 1280), (96, 320)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def shortening(library: Path) -> Shortener:
    return Shortener(load(library))


def packed(weight: torch.Tensor) -> tuple[Matrix, torch.Tensor]:
    kept = pack(weight)
    matrix = describe_strips(kept)
    assert matrix is not None
    return matrix, kept


@every_bfloat16_build
@pytest.mark.parametrize(("out_width", "in_width"), SHAPES)
def test_products_have_the_same_bits(library: Path, shortening: Shortener, out_width: int, in_width: int) -> None:
    weight = (torch.randn(out_width, in_width) / 8).bfloat16()
    matrix, kept = packed(weight)
    short = shortening.shorten(kept)
    assert short is not None and short[0].layout == BFLOAT12_BLOCKS
    for rows in (1, 2, 3, 4, 5, 9, 16, 17, 40):
        x = torch.randn(rows, in_width)
        assert torch.equal(run_product(library, short[0], x), run_product(library, matrix, x))


@every_bfloat16_build
def test_they_take_a_quarter_fewer_bytes(shortening: Shortener) -> None:
    short = shortening.shorten(pack((torch.randn(1792, 1280) / 8).bfloat16()))
    assert short is not None and len(short[1]) < 0.78 * 2 * 1792 * 1280, "0.75, and one line in a hundred that is apart"


@every_bfloat16_build
def test_numbers_of_any_size_come_back(library: Path, shortening: Shortener) -> None:
    """Outliers, zeros, the smallest and the largest: lines with other exponents than most are kept as they are."""
    weight = torch.randn(128, 640).bfloat16()
    smallest = torch.finfo(torch.bfloat16).smallest_normal
    for place, value in enumerate([0.0, -0.0, 3e38, -1e30, 1e-30, smallest, smallest / 64, 2.0**-20]):
        weight[17 * place, 41 * place] = value
    matrix, kept = packed(weight)
    short = shortening.shorten(kept)
    assert short is not None
    unit = torch.eye(640)[::41].contiguous()
    found = run_product(library, short[0], unit)
    expected = weight.float().T[::41]
    assert torch.equal(found, expected.where(expected.abs() >= smallest, 0.0)), "products take no smaller ones"
    assert torch.equal(found, run_product(library, matrix, unit))


@every_bfloat16_build
def test_a_weight_of_too_many_exponents_is_left_alone(shortening: Shortener) -> None:
    spread = torch.randn(128, 128) * 2.0 ** torch.randint(-60, 60, (128, 128))
    assert shortening.shorten(pack(spread.bfloat16())) is None


@every_bfloat16_build
@pytest.mark.parametrize("num_tokens", [1, 7, 40, 301])
def test_a_prompt_s_experts_have_the_same_bits(library: Path, shortening: Shortener, num_tokens: int) -> None:
    _, experts = draw_experts(128, 160, 5, 96)
    whole = experts.described
    assert whole is not None
    x, ids, weights = draw_tokens(num_tokens, 128, 5, 3)
    pairs = [[shortening.shorten(weight) for weight in weights] for weights in (experts.gate_up, experts.down)]
    up, down = ([pair[0] for pair in own if pair is not None] for own in pairs)
    short = describe_experts(up, down, experts.shared_gate_up, experts.shared_down)
    assert short is not None and [matrix.layout for matrix in short.down] == [BFLOAT12_BLOCKS] * 5 + [BFLOAT16_BLOCKS]
    workers = workers_of(library)
    assert torch.equal(workers.mix_experts(x, ids, weights, short), workers.mix_experts(x, ids, weights, whole))


@every_bfloat16_build
def test_a_copy_laid_in_blocks_is_what_is_packed(library: Path, shortening: Shortener) -> None:
    """Of any number of columns: the last block is filled up."""
    weight, x = (torch.randn(200, 96) / 8).bfloat16(), torch.randn(3, 96)
    laid = lay_in_blocks(weight)
    assert laid is not None and lay_in_blocks(weight[:, :90]) is None
    whole = run_product(library, laid[0], x)
    torch.testing.assert_close(whole, x.bfloat16().float() @ weight.float().T)
    short = shortening.shorten_blocks(*laid)
    assert short is not None and torch.equal(run_product(library, short[0], x), whole)
