"""Small checkpoints that can be quantised: nano's config with other numbers, random weights, nano's tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import vl2
from vl2.checkpoint.folder import read_model_config
from vl2.model.vl2 import DeepseekVL2
from vl2.model.weights import destinations, draw_weights

NANO = Path(vl2.__file__).parent / "assets" / "nano"
SMALL_LANGUAGE = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3}
SMALL_VISION = {"width": 64, "layers": 1, "heads": 2}


def write_checkpoint(folder: Path, **language: object) -> Path:
    """Of MLA with 4 experts and a shared one, unless `language` says otherwise; bfloat16."""
    folder.mkdir(parents=True)
    raw = json.loads((NANO / "config.json").read_text())
    raw["language_config"] |= SMALL_LANGUAGE | language
    raw["vision_config"] |= SMALL_VISION
    raw["projector_config"] |= {"input_dim": 64, "n_embed": raw["language_config"]["hidden_size"]}
    (folder / "config.json").write_text(json.dumps(raw))
    for path in NANO.glob("*.json"):
        if not (folder / path.name).exists() and "index" not in path.name:
            shutil.copy(path, folder)
    model = DeepseekVL2(read_model_config(folder), 64, dtype=torch.bfloat16, device="cpu")
    draw_weights(model, seed=1)
    tensors = {name: target.bfloat16().clone().contiguous() for name, target in destinations(model)}
    save_file(tensors, folder / "model.safetensors")
    return folder


def draw_pictures(folder: Path, number: int) -> Path:
    """Smooth noise, so that tokens differ."""
    folder.mkdir(parents=True)
    dice = np.random.default_rng(0)
    for index in range(number):
        coarse = Image.fromarray(dice.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((384, 384), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder
