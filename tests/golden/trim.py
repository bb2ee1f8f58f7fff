"""Makes this folder from the full golden set: `python tests/golden/trim.py FULL_SET`.

Checkpoints, conversations, pictures, gates, tilings and boxes are copied whole. Of the golden tensors stay those that
no other one implies; pixels become SHA-256 hashes, in the spelling of golden.json (uint8, channels first).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
BIG = "mha-greedy"  # real 384-pixel tiles: its tensors are ten times as long
FIRST = "mla-greedy"  # the first small variant keeps more than the other small ones
PER_CASE = {  # tensor → the cases that keep it, in the small variants and in the big one; others keep all cases
    "vision_out": (("square", "portrait"), ("square",)),
    "projector_out": (("square", "portrait", "landscape", "two", "three", "multiturn"), ("square", "landscape")),
    "inputs_embeds": (("text", "square", "portrait", "two", "three"), ("text", "square", "landscape")),
    "hidden_last": (("text", "square", "portrait", "two"), ("text", "square")),
    "logits_last8": (("square",), ("square",)),
    "gate_ids": (("text", "square", "portrait", "landscape", "two", "three", "multiturn"), ("text", "square", "three")),
}


def is_kept(variant: str, key: str) -> bool:
    case, _, name = key.partition(".")
    stem = name.split(".")[0]
    if stem in ("pixel_u8", "pixel_f32"):
        return variant == FIRST and case == "square"
    if case == "proc":  # golden.json has its hash; this one differs between Pillow versions, so it is kept to compare
        return name == "img-tall.pixel_u8" and variant == FIRST
    if stem == "step_logits" and variant not in (BIG, FIRST):
        return case in ("text", "square", "landscape", "two")
    if stem in PER_CASE:
        return case in PER_CASE[stem][variant == BIG]
    return True


def pixel_hashes(tensors: dict[str, np.ndarray]) -> dict[str, dict[str, str]]:
    """case → tile → SHA-256 of its uint8 pixels [3, side, side]."""
    hashes: dict[str, dict[str, str]] = {}
    for key in sorted(tensors):
        case, _, name = key.partition(".")
        if name.startswith("pixel_u8."):
            digest = hashlib.sha256(np.ascontiguousarray(tensors[key]).tobytes()).hexdigest()
            hashes.setdefault(case, {})[name.removeprefix("pixel_u8.")] = digest
    return hashes


def trim(full: Path) -> None:
    for name in ("gates", "images"):
        shutil.copytree(full / name, HERE / name, dirs_exist_ok=True)
    for name in ("resolutions.json", "grounding.json"):
        shutil.copyfile(full / name, HERE / name)
    for source in sorted(path.parent for path in full.glob("*/golden.safetensors")):
        target = HERE / source.name
        shutil.copytree(source / "ckpt", target / "ckpt", dirs_exist_ok=True)
        shutil.copyfile(source / "golden.json", target / "golden.json")
        tensors = load_file(source / "golden.safetensors")
        kept = {key: value for key, value in tensors.items() if is_kept(source.name, key)}
        save_file(kept, target / "golden.safetensors")
        (target / "pixel_sha256.json").write_text(json.dumps(pixel_hashes(tensors), indent=1) + "\n")


if __name__ == "__main__":
    trim(Path(sys.argv[1]))
