"""The training model computes what the official code computes, so what it learns is what the server serves."""

import json

import pytest
import torch
import views
from PIL import Image
from safetensors.torch import load_file
from tests.golden_cases import GOLDEN_ROOT, load_variants

from model import NanoVL2

CASES = [
    (v, c)
    for v in load_variants()
    if v.name in ("mla-greedy", "mla-noaux")
    for c in v.cases
    if c.name in ("text", "square", "landscape", "two")
]


@pytest.fixture
def tile_side(request, monkeypatch):
    """The golden checkpoints have small tiles; the grids are the same."""
    config = json.loads((request.param.folder / "config.json").read_text())
    side = config["vision_config"]["image_size"]
    monkeypatch.setattr(views, "TILE", side)
    monkeypatch.setattr(views, "SIDE", -(-(side // 14) // 2))
    views.best_grid.cache_clear()
    yield config
    views.best_grid.cache_clear()


@pytest.mark.parametrize(("tile_side", "case"), CASES, indirect=["tile_side"], ids=[str(c) for _, c in CASES])
@torch.no_grad()
def test_official_numbers_are_reproduced(tile_side, case):
    config = tile_side
    folder = GOLDEN_ROOT / case.variant / "ckpt"
    model = NanoVL2(config).eval()
    model.load_official({k: v.float() for shard in folder.glob("*.safetensors") for k, v in load_file(shard).items()})
    ids = torch.tensor(case.input_ids)
    x = model.embed(ids, torch.float32)

    if case.image_paths:
        cut = [views.tiles_of(Image.open(p).convert("RGB")) for p in case.image_paths]
        tiles = torch.cat([torch.from_numpy(pixels) for pixels, _, _ in cut])
        seen = model.vision(tiles.permute(0, 3, 1, 2).float() / 127.5 - 1)
        tokens = model.projector(seen)
        layout = views.Layout(tuple(grid for _, _, grid in cut), (0,) * (len(cut) + 1))
        merged = model.merge(tokens, torch.zeros(1, 0, x.shape[-1]), torch.from_numpy(layout.index))[0]
        x[torch.from_numpy(case.tensors["images_seq_mask"]).bool()] = merged
        if not any(
            grid == (1, 1) for _, _, grid in cut
        ):  # the official code encodes the equal tile of a 1×1 grid twice
            close(seen, case.get("vision_out"), 1e-4)
            close(tokens, case.get("projector_out"), 1e-4)
        close(x, case.get("inputs_embeds"), 1e-4)
    hidden = model.language(x[None], torch.arange(len(ids))[None], prefix=len(ids))[-1][0]
    logits = model.language.lm_head(hidden)
    close(hidden, case.get("hidden_last"), 2e-3)
    close(logits[-1], case.get("step_logits")[0], 2e-3)
    assert logits.argmax(-1).tolist() == case.tensors["argmax_all"].tolist()


def close(ours, golden, atol):
    """Equal within a bound; a trimmed golden set leaves some tensors out."""
    if golden is not None:
        torch.testing.assert_close(ours, torch.from_numpy(golden), atol=atol, rtol=0)
