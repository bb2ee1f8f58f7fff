"""Reads the golden set (tests/golden/README.md) for the tests of the processor, the model and the engine.

`for variant in load_variants(): for case in variant.cases: case.messages, case.input_ids, case.get("logits_last8")`
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from vl2.core.types import Message

GOLDEN_ROOT = Path(os.environ.get("VL2_GOLDEN") or Path(__file__).parent / "golden")
VARIANTS = tuple(sorted(path.parent.name for path in GOLDEN_ROOT.glob("*/golden.json")))
ROLES = {"<|User|>": "user", "<|Assistant|>": "assistant"}


@dataclass(frozen=True)
class GoldenCase:
    """One prompt. `meta` is its entry in golden.json; tensors of a trimmed set may be missing."""

    variant: str
    name: str
    meta: dict[str, Any]
    tensors: dict[str, np.ndarray]  # without the case's name: "logits_last8", "gate_ids.1" …
    pixel_sha256: dict[int, str]  # tile → hash of its uint8 pixels [3, side, side]; not always all tiles

    def __str__(self) -> str:
        return f"{self.variant}-{self.name}"

    @property
    def is_plain_prompt(self) -> bool:
        """One of the processor's cases without conversation: `meta["prompt"]` and `image_paths`."""
        return "prompt" in self.meta

    @property
    def messages(self) -> list[Message]:
        """The conversation; its last message is the empty answer of the assistant."""
        return [
            Message(
                ROLES.get(turn["role"], turn["role"]),
                turn["content"],
                tuple(GOLDEN_ROOT / image for image in turn.get("images", ())),
            )
            for turn in self.meta["conversation"]
        ]

    @property
    def image_paths(self) -> list[Path]:
        """All pictures of the conversation, in order."""
        turns = [self.meta] if self.is_plain_prompt else self.meta["conversation"]
        return [GOLDEN_ROOT / image for turn in turns for image in turn.get("images", ())]

    @property
    def input_ids(self) -> list[int]:
        if "input_ids_rle" in self.meta:
            return unfold_rle(self.meta["input_ids_rle"])
        return self.tensors["input_ids"].tolist()

    @property
    def greedy_tokens(self) -> list[int]:
        return self.meta["greedy_tokens"]

    @property
    def is_pillow_sensitive(self) -> bool:
        """Whether its pixels depend on Pillow's version (and may differ from ours)."""
        return bool(self.meta.get("pillow_sensitive"))

    def get(self, name: str) -> np.ndarray | None:
        """A tensor of this case, or None where the trimmed set leaves it out."""
        return self.tensors.get(name)


@dataclass(frozen=True)
class GoldenVariant:
    """One tiny checkpoint and what the official code does with it."""

    name: str
    folder: Path  # of the checkpoint
    meta: dict[str, Any]
    tensors: dict[str, np.ndarray]  # all, by full name: "text.logits", "unit.x", "batch.input_ids" …
    cases: tuple[GoldenCase, ...]
    processor_cases: tuple[GoldenCase, ...]

    def __str__(self) -> str:
        return self.name

    def case(self, name: str) -> GoldenCase:
        return next(case for case in self.cases + self.processor_cases if case.name == name)


@functools.cache
def load_variant(name: str) -> GoldenVariant:
    folder = GOLDEN_ROOT / name
    meta = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "golden.safetensors")
    hashes_file = folder / "pixel_sha256.json"
    hashes = json.loads(hashes_file.read_text()) if hashes_file.exists() else {}

    def case(entry: dict[str, Any], prefix: str) -> GoldenCase:
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        sha256 = {int(tile): digest for tile, digest in hashes.get(entry["name"], {}).items()}
        sha256 |= dict(enumerate(entry.get("tile_sha256_u8_chw", ())))
        pixels = {key: tensor for key, tensor in own.items() if key.startswith("pixel_u8.")}
        sha256 |= {int(key.removeprefix("pixel_u8.")): tile_sha256(tensor) for key, tensor in pixels.items()}
        return GoldenCase(name, entry["name"], entry, own, sha256)

    cases = tuple(case(entry, entry["name"] + ".") for entry in meta["cases"])
    processor_cases = tuple(case(entry, f"proc.{entry['name']}.") for entry in meta.get("processor_cases", ()))
    return GoldenVariant(name, folder / "ckpt", meta, tensors, cases, processor_cases)


def load_variants() -> list[GoldenVariant]:
    return [load_variant(name) for name in VARIANTS]


def read_json(name: str) -> Any:
    """resolutions.json, grounding.json, gates/gates.json."""
    return json.loads((GOLDEN_ROOT / name).read_text(encoding="utf-8"))


def load_gates() -> dict[str, np.ndarray]:
    return load_file(GOLDEN_ROOT / "gates" / "gates.safetensors")


def tile_sha256(pixels: np.ndarray) -> str:
    """Of uint8 [3, side, side], as golden.json spells it."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def unfold_rle(pairs: list[list[int]]) -> list[int]:
    """Run-length pairs [value, count] of golden.json → the list."""
    return [value for value, count in pairs for _ in range(count)]
