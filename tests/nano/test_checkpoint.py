"""The shipped checkpoint: small enough, complete, of wide enough matrices, every expert in use."""

import json
from pathlib import Path

import pytest
import torch
from config import CONFIG
from safetensors.torch import load_file

from model import Gate, NanoVL2

ASSETS = Path(__file__).parents[2] / "src/vl2/assets/nano"


@pytest.fixture(scope="module")
def model():
    nano = NanoVL2(CONFIG).eval()
    weights = {}
    for shard in ASSETS.glob("*.safetensors"):
        weights |= load_file(shard)
    nano.load_official({k: v.float() for k, v in weights.items()})
    return nano


def test_it_is_at_most_16_megabytes_in_bfloat16():
    shards = list(ASSETS.glob("*.safetensors"))
    assert sum(s.stat().st_size for s in shards) <= 16_000_000
    index = json.loads((ASSETS / "model.safetensors.index.json").read_text())
    assert {s.name for s in shards} == set(index["weight_map"].values())


def test_its_config_is_the_trained_one():
    assert json.loads((ASSETS / "config.json").read_text()) == CONFIG


def test_every_linear_width_is_a_multiple_of_128(model):
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert linear and all(d % 128 == 0 for m in linear for d in m.weight.shape)


def test_every_expert_is_used_on_a_scene(model):
    from forward import run
    from pack import make_batch

    batch = make_batch(((1, 1),), seed=123, rows=2, sets=1)
    with torch.no_grad():
        run(model, None, batch, 0, augment=False, dtype=torch.float32)
    for gate in (m for m in model.modules() if isinstance(m, Gate)):
        share = gate.load / gate.load.sum()
        assert share.min() > 0.05 and share.max() < 0.6


def test_it_names_a_large_cat(model):
    """The checkpoint in the package sees: teacher-forced answers to held-out scenes are mostly exact."""
    from exam import exam, table
    from forward import exactness
    from pack import make_batch

    batch = make_batch(((1, 1),), seed=100, rows=8, sets=1, ask=exam, keep=True)
    scores = table(exactness(model, batch, dtype=torch.float32))
    assert scores["naming"]["right"] > 0.6 and scores["absent"]["right"] > 0.8
