"""Logits of every kernel path in bfloat16, and the vision tower's features: as near to exact ones as plain torch's.

What is compared is told in tests/parity/precision.py. In Triton's interpreter steps are small; on a GPU they are large
enough for every tile of every kernel (`pytest --device cuda`).
"""

import functools

import pytest
import torch

from golden_cases import VARIANTS, load_variant
from tests import device, interpreter  # noqa: F401  # before Triton is imported anywhere
from tests.parity.precision import Errors, Runs, Script
from tests.parity.steps import case_prompt
from vl2.checkpoint.folder import read_model_config
from vl2.model.weights import load_weights

triton_backend = pytest.importorskip("vl2.ops.triton_backend", reason="Triton is not installed")

from vl2.ops.experts import kernel as experts_kernel  # noqa: E402

MAX_RATIO = 1.2
"""RMS error of kernels over that of torch's bfloat16."""

EXPANDED, ABSORBED = 50, 20
"""Rows of a chunk: MLA's kernels take the context out of the latent space, or the queries into it."""

SCALE_OF_STEPS = 3
"""In the interpreter, where experts are given the tiles of steps so many times as large as these small ones."""


@functools.cache
def build_runs(variant: str) -> Runs:
    folder = load_variant(variant).folder
    runs = Runs.of(read_model_config(folder), triton_backend, device.DEVICE)
    load_weights(runs.reference.model, folder)
    runs.share_weights()
    return runs


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    if device.DEVICE == "cpu":
        choose = experts_kernel.choose_tile
        monkeypatch.setattr(experts_kernel, "choose_tile", lambda pairs, *rest: choose(SCALE_OF_STEPS * pairs, *rest))


def small_steps() -> list[Script]:
    """For the interpreter."""
    beside = [(0, 1), (1, 1)]
    return [
        Script("whole prompts", [(0, 70), (1, 33), (2, 40)]),
        Script("a later chunk, expanded", [(2, EXPANDED)]),
        Script("a later chunk, absorbed", [(2, ABSORBED)]),
        *[Script("decoding, 1 row", [(0, 1)])] * 6,
        *[Script("decoding, 4 rows", [(0, 1), (1, 1), (2, 1), (3, 1)])] * 3,
        Script("a chunk beside decoding rows, expanded", [*beside, (3, EXPANDED)]),
        Script("a chunk beside decoding rows, absorbed", [*beside, (3, ABSORBED)]),
        Script("a chunk beside decoding rows, in a graph", [*beside, (3, ABSORBED)], is_graph=True),
    ]


def large_steps() -> list[Script]:
    """For a GPU. 160 decoding rows share multiprocessors; contexts are of all lengths up to about a thousand."""
    some, many = [(i, 1) for i in range(8)], [(i, 1) for i in range(160)]
    return [
        Script("whole prompts", [(0, 700), (1, 323)]),
        Script("whole prompts", [(i, 1 + 7 * i % 90) for i in range(2, 160)]),
        Script("whole prompts", [(200, 400)]),
        *[Script("a later chunk, expanded", [(200, 150)])] * 2,
        *[Script("a later chunk, absorbed", [(200, ABSORBED)])] * 8,
        *[Script("decoding, 1 row", [(0, 1)])] * 48,
        *[Script("decoding, 8 rows", some)] * 16,
        *[Script("decoding, 32 rows", many[40:72])] * 8,
        *[Script("decoding, 160 rows", many)] * 4,
        *[Script("a chunk beside decoding rows, expanded", [*some, (201, 200)])] * 2,
        *[Script("a chunk beside decoding rows, absorbed", [*some, (201, ABSORBED)])] * 8,
        *[Script("a chunk beside decoding rows, in a graph", [*some, (201, 60)], is_graph=True)] * 4,
    ]


def told(errors: dict[str, Errors]) -> str:
    return "".join(f"\n{path}: {e.ratio:.3f} ({e.relative:.2e}, {e.rows} rows)" for path, e in errors.items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_as_near_to_exact_ones_as_those_of_torch(variant: str):
    errors = build_runs(variant).ratios(small_steps() if device.DEVICE == "cpu" else large_steps())
    print(variant, told(errors))
    assert all(path.ratio <= MAX_RATIO for path in errors.values()), told(errors)


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_of_pictures_are_as_near_to_exact_ones_as_those_of_torch(variant: str):
    tiles = torch.from_numpy(case_prompt(load_variant(variant).case("square")).tiles).to(device.DEVICE)
    errors = build_runs(variant).vision_errors(tiles)
    print(variant, told({"features": errors}))
    assert errors.ratio <= MAX_RATIO, told({"features": errors})
