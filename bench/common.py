"""What all benchmark scripts share: requests without people, medians, and the JSON line with its circumstances."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENVIRONMENT = dict(os.environ)
"""Before the lines below set what is for this process alone: for those that a benchmark starts."""

from vl2.engine.instructions import limit_instructions
from vl2.engine.threads import limit_spinning

limit_spinning()  # as the engine's process does; before torch is imported
limit_instructions(is_deterministic="fast" not in sys.argv)  # an argument of cpu_ours.py

import numpy as np
import torch

import vl2
from vl2.core.tiling import TileGeometry, num_image_tokens
from vl2.core.types import GenerateRequest, ImageSpan, Prompt, SamplingParams
from vl2.engine.engine import Engine

NANO = Path(vl2.__file__).parent / "assets" / "nano"


def text_prompt(num_tokens: int, seed: int = 0) -> Prompt:
    """Random ids: no two prompts share a prefix."""
    dice = np.random.default_rng(seed)
    return Prompt(dice.integers(10, 200, num_tokens).tolist(), (), np.zeros((0, 384, 384, 3), np.uint8), ())


def picture_prompt(geometry: TileGeometry, image_token_id: int, num_text_tokens: int, seed: int) -> Prompt:
    """A picture of one tile's size (its two views are the same tile), then text."""
    dice = np.random.default_rng(seed)
    tile = dice.integers(0, 256, (geometry.side, geometry.side, 3), dtype=np.uint8)
    key = hashlib.blake2b(tile.tobytes(), digest_size=32).digest()
    length = num_image_tokens(1, 1, geometry)
    ids = [0] + [image_token_id] * length + dice.integers(10, 200, num_text_tokens - 1).tolist()
    return Prompt(ids, (ImageSpan(1, length, 0, 2, 1, 1, 384, 384),), np.stack([tile, tile]), (key, key))


def request(name: str, prompt: Prompt, num_tokens: int) -> GenerateRequest:
    params = SamplingParams(max_tokens=num_tokens, seed=1, ignore_eos=True)
    return GenerateRequest(name, prompt, params)


def drain(engine: Engine, on_token: Callable[[str, float], None] = lambda name, at_s: None) -> float:
    """Run until nothing is left; returns seconds."""
    started_s = time.perf_counter()
    while engine.has_work:
        for event in engine.step():
            assert event.error is None, event.error
            on_token(event.request_id, time.perf_counter())
    return time.perf_counter() - started_s


def median(repeat: int, measure: Callable[[int], float]) -> float:
    """Of `repeat` runs, after one that is thrown away."""
    measure(-1)
    return statistics.median(measure(i) for i in range(repeat))


def report(name: str, results: dict[str, Any]) -> None:
    """The table and the JSON line."""
    for key, value in results.items():
        print(f"{key:60} {value:10.4g}" if isinstance(value, float) else f"{key:60} {value}")
    print(json.dumps({**circumstances(name), **results}))


def circumstances(name: str) -> dict[str, Any]:
    """What a figure depends on beside the code."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    return {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%d"),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "command": " ".join(sys.argv),
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
    }
