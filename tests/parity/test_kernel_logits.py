"""Logits of every kernel path in bfloat16, and the vision tower's features: as near to exact ones as plain torch's.

What is compared is told in tests/parity/precision.py. In Triton's interpreter steps are small; on a GPU they are large
enough for every tile of every kernel (`pytest --device cuda`).
"""

import functools

import pytest
import torch

from golden_cases import VARIANTS, load_variant
from tests import (
    device,
    interpreter,  # noqa: F401  # before Triton is imported anywhere
)
from tests.parity.precision import Errors, Runs, Script
from tests.parity.steps import case_prompt
from vl2.checkpoint.folder import read_model_config
from vl2.model.weights import load_weights

triton_backend = pytest.importorskip("vl2.ops.triton_backend", reason="Triton is not installed")
kernel_mla = pytest.importorskip("vl2.ops.attention.kernel_mla", reason="Triton is not installed")
experts_kernel = pytest.importorskip("vl2.ops.experts.kernel", reason="Triton is not installed")

MAX_RATIO = 1.2
"""RMS error of kernels over that of torch's bfloat16."""

IS_CPU = device.DEVICE == "cpu"
DECODERS = ("mha-greedy", "mla-greedy") if IS_CPU else VARIANTS
"""All kernels of the decoder are in these two; in the interpreter the others would only take their time."""
TOWERS = tuple(variant for variant in VARIANTS if variant != "mha-greedy") if IS_CPU else VARIANTS
"""Without the one whose tile has 27 × 27 patches, too many for the interpreter."""

LAYERS_ON_CPU = 2
"""One dense and one of experts."""


@functools.cache
def build_runs(variant: str) -> Runs:
    folder = load_variant(variant).folder
    runs = Runs.of(read_model_config(folder), triton_backend, device.DEVICE)
    load_weights(runs.reference.model, folder)
    runs.share_weights(LAYERS_ON_CPU if IS_CPU else None)
    return runs


@pytest.fixture(autouse=True)
def ways_of_large_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter small steps go the ways of large ones."""
    if not IS_CPU:
        return
    choose = experts_kernel.choose_tile
    monkeypatch.setattr(experts_kernel, "choose_tile", lambda pairs, *rest: choose(8 * pairs, *rest))
    monkeypatch.setattr(kernel_mla, "MIN_ROWS", 16)


def small_steps() -> list[Script]:
    """For the interpreter. So few rows are counted to three paths, as each path's own ratio would be left to chance."""
    beside = [(0, 1), (1, 1)]
    return [
        Script("prompts", [(0, 21), (1, 13)]),
        Script("prompts", [(1, 18)]),  # expanded
        Script("prompts", [(1, 7)]),  # absorbed
        *[Script("decoding", [(0, 1)])] * 4,
        *[Script("decoding", [(0, 1), (1, 1), (2, 1)])] * 2,
        Script("both", [*beside, (3, 18)]),
        Script("both", [*beside, (3, 7)]),
        Script("both", [*beside, (3, 7)], is_graph=True),
    ]


def large_steps() -> list[Script]:
    """For a GPU. 160 decoding rows share multiprocessors; contexts are of all lengths up to about a thousand."""
    some, many = [(i, 1) for i in range(8)], [(i, 1) for i in range(160)]
    return [
        Script("whole prompts", [(0, 700), (1, 323)]),
        Script("whole prompts", [(i, 1 + 7 * i % 90) for i in range(2, 160)]),
        Script("whole prompts", [(200, 400)]),
        *[Script("a later chunk, expanded", [(200, 150)])] * 2,
        *[Script("a later chunk, absorbed", [(200, 20)])] * 8,
        *[Script("decoding, 1 row", [(0, 1)])] * 48,
        *[Script("decoding, 8 rows", some)] * 16,
        *[Script("decoding, 32 rows", many[40:72])] * 8,
        *[Script("decoding, 160 rows", many)] * 4,
        *[Script("a chunk beside decoding rows, expanded", [*some, (201, 200)])] * 2,
        *[Script("a chunk beside decoding rows, absorbed", [*some, (201, 20)])] * 8,
        *[Script("a chunk beside decoding rows, in a graph", [*some, (201, 60)], is_graph=True)] * 4,
    ]


def told(errors: dict[str, Errors]) -> str:
    return "".join(f"\n{path}: {e.ratio:.3f} ({e.relative:.2e}, {e.rows} rows)" for path, e in errors.items())


@pytest.mark.parametrize("variant", DECODERS)
def test_logits_are_as_near_to_exact_ones_as_those_of_torch(variant: str):
    errors = build_runs(variant).ratios(small_steps() if IS_CPU else large_steps())
    print(variant, told(errors))
    assert all(path.ratio <= MAX_RATIO for path in errors.values()), told(errors)


@pytest.mark.parametrize("variant", TOWERS)
def test_features_of_pictures_are_as_near_to_exact_ones_as_those_of_torch(variant: str):
    tiles = torch.tensor(case_prompt(load_variant(variant).case("square")).tiles, device=device.DEVICE)
    errors = build_runs(variant).vision_errors(tiles)
    print(variant, told({"features": errors}))
    assert errors.ratio <= MAX_RATIO, told({"features": errors})
