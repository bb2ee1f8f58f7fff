"""A prompt's experts in one call, in every build that this processor can run, against the reference in float32."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.ops.native.builds import every_bfloat16_build, needs_library, needs_packing
from vl2.ops import native_backend
from vl2.ops.experts import reference
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.linear import pack
from vl2.ops.native.builds import load
from vl2.ops.native.matrices import describe_experts
from vl2.ops.native.prompts import Workers

pytestmark = [pytest.mark.cpu_only, needs_library, needs_packing]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def draw_experts(width: int, inner: int, num_experts: int, shared: int) -> tuple[ExpertWeights, ExpertWeights]:
    """In float32, whose numbers are bfloat16's; the same packed."""

    def draw(out_width: int, in_width: int) -> torch.Tensor:
        return (torch.randn(out_width, in_width) / in_width**0.5).bfloat16()

    gate_up = [draw(2 * inner, width) for _ in range(num_experts)]
    down = [draw(width, inner) for _ in range(num_experts)]
    beside = (draw(2 * shared, width), draw(width, shared)) if shared else (None, None)
    plain = ExpertWeights(torch.stack(gate_up).float(), torch.stack(down).float(), *(_float(x) for x in beside))
    packed_beside = [None if x is None else pack(x) for x in beside]
    packed = ExpertWeights([pack(x) for x in gate_up], [pack(x) for x in down], *packed_beside)
    described = describe_experts(packed.gate_up, packed.down, packed.shared_gate_up, packed.shared_down)
    return plain, dataclasses.replace(packed, described=described)


def _float(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.float()


def draw_tokens(
    num_tokens: int, width: int, num_experts: int, choices: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weights, ids = torch.randn(num_tokens, num_experts).softmax(-1).topk(choices)
    return torch.randn(num_tokens, width).bfloat16(), ids, weights


def workers_of(library: Path, threads: int = 2) -> Workers:
    return Workers(load(library), threads)


@every_bfloat16_build
@pytest.mark.parametrize("shared", [0, 96])
@pytest.mark.parametrize("num_tokens", [0, 1, 7, 33, 301])
def test_they_are_the_references(library: Path, num_tokens: int, shared: int) -> None:
    plain, packed = draw_experts(128, 160, 5, shared)
    x, ids, weights = draw_tokens(num_tokens, 128, 5, 3)
    assert packed.described is not None
    out = workers_of(library).mix_experts(x, ids, weights, packed.described)
    right = reference.mix_experts(x.float(), ids, weights, plain) if num_tokens else x.float()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), right, atol=0.02, rtol=0.01)  # inner rows, results and sums are rounded


@every_bfloat16_build
def test_all_tokens_may_choose_one_expert(library: Path) -> None:
    plain, packed = draw_experts(64, 32, 40, 0)
    x, weights, ids = torch.randn(600, 64).bfloat16(), torch.ones(600, 1), torch.full((600, 1), 39)
    assert packed.described is not None
    out = workers_of(library).mix_experts(x, ids, weights, packed.described)
    torch.testing.assert_close(out.float(), reference.mix_experts(x.float(), ids, weights, plain), atol=0.02, rtol=0.01)


@every_bfloat16_build
def test_a_row_has_the_same_bits_alone_and_among_others_on_any_number_of_threads(library: Path) -> None:
    _, packed = draw_experts(128, 96, 4, 64)
    x, ids, weights = draw_tokens(150, 128, 4, 2)
    assert packed.described is not None
    together = workers_of(library, threads=1).mix_experts(x, ids, weights, packed.described)
    others = workers_of(library, threads=4)
    for begin, end in [(0, 1), (3, 20), (20, 53), (53, 150)]:
        own = slice(begin, end)
        assert torch.equal(others.mix_experts(x[own], ids[own], weights[own], packed.described), together[own])


@every_bfloat16_build
def test_large_gates_of_either_sign_stay_finite(library: Path) -> None:
    plain, packed = draw_experts(64, 64, 2, 64)
    x, ids, weights = draw_tokens(20, 64, 2, 2)
    assert packed.described is not None
    out = workers_of(library).mix_experts(1000 * x, ids, weights, packed.described).float()
    right = reference.mix_experts(1000 * x.float(), ids, weights, plain)
    assert torch.isfinite(out).all() and (out - right).norm() < 0.01 * right.norm()


def test_the_backend_takes_them_where_widths_are_whole_strips() -> None:
    for width, inner, is_described in [(128, 96, True), (96, 96, False), (128, 40, False)]:
        plain, packed = draw_experts(width, inner, 3, 32)
        assert (packed.described is not None) == is_described
        x, ids, weights = draw_tokens(9, width, 3, 2)
        out = native_backend.mix_experts(x, ids, weights, packed).float()
        torch.testing.assert_close(out, reference.mix_experts(x.float(), ids, weights, plain), atol=0.02, rtol=0.01)
