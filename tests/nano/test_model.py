"""The training model computes what the official code computes, so what it learns is what the server serves."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from model import NanoVL2  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from views import Layout  # noqa: E402

ROOT = Path(__file__).parents[2]
GOLDEN = next((p for p in (ROOT / "tests/golden", ROOT / "../shared/golden") if (p / "mla-greedy").exists()), None)


@pytest.mark.skipif(GOLDEN is None, reason="golden files are not in this checkout")
@pytest.mark.parametrize("variant", ["mla-greedy", "mla-noaux"])
@pytest.mark.parametrize("case", ["text", "landscape", "two"])
def test_official_logits_are_reproduced(variant, case):
    folder = GOLDEN / variant
    config = json.loads((folder / "ckpt/config.json").read_text())
    weights = {}
    for shard in sorted((folder / "ckpt").glob("*.safetensors")):
        weights |= {k: v.float() for k, v in load_file(shard).items()}
    golden = load_file(folder / "golden.safetensors")
    model = NanoVL2(config).eval()
    model.load_official(weights)

    ids, mask = golden[f"{case}.input_ids"].long(), golden[f"{case}.images_seq_mask"].bool()
    with torch.no_grad():
        x = model.embed(ids, torch.float32)
        keys = sorted((k for k in golden if k.startswith(f"{case}.pixel_u8.")), key=lambda k: int(k.rsplit(".", 1)[1]))
        if mask.any():
            pixels = torch.stack([golden[k] for k in keys]).float() / 127.5 - 1
            seen = model.vision(pixels)
            torch.testing.assert_close(seen, golden[f"{case}.vision_out"], atol=1e-4, rtol=0)
            tokens = model.projector(seen)
            torch.testing.assert_close(tokens, golden[f"{case}.projector_out"], atol=1e-4, rtol=0)
            x[mask] = official_merge(model, tokens, golden[f"{case}.images_spatial_crop"].tolist())
            torch.testing.assert_close(x, golden[f"{case}.inputs_embeds"], atol=1e-4, rtol=0)
        states = model.language(x[None], torch.arange(len(ids))[None], prefix=len(ids))
        torch.testing.assert_close(states[-1][0], golden[f"{case}.hidden_last"], atol=2e-3, rtol=0)
        logits = model.language.lm_head(states[-1][0])
    torch.testing.assert_close(logits[-8:], golden[f"{case}.logits_last8"], atol=2e-3, rtol=0)


def official_merge(model, tokens, crops):
    """Both views of every picture in token order, by the model's own `merge` with a layout of this tile size."""
    import views

    side, views.SIDE = views.SIDE, int(tokens.shape[1] ** 0.5)
    try:
        grids = tuple((w, h) for w, h in crops)
        # A 1×1 grid is encoded once in training; the golden file holds both (equal) tiles, so drop the second.
        keep, at = [], 0
        for w, h in grids:
            keep += [at] if (w, h) == (1, 1) else range(at, at + 1 + w * h)
            at += 1 + w * h
        layout = Layout(grids, (0,) * (len(grids) + 1))
        empty = torch.zeros(1, 0, tokens.shape[-1])
        return model.merge(tokens[keep], empty, torch.from_numpy(layout.index))[0]
    finally:
        views.SIDE = side
