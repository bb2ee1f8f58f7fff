"""Golden prompts through the bare network, without the engine, so that each stage can be looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.parity.steps import PAGE_SIZE
from vl2.core.config import EngineConfig
from vl2.core.types import GenerateRequest, Prompt, SamplingParams
from vl2.edge.network import Network
from vl2.engine.engine import Engine
from vl2.engine.onnx_runner import OnnxRunner
from vl2.engine.scheduler import Chunk, TileJob
from vl2.engine.sequence import Sequence

SETTINGS = {"engine": "onnx", "provider": "cpu", "threads": 1, "kv_cache_tokens": 16384, "image_cache_tiles": 64}


def build_engine(bundle: Path, **changes) -> Engine:
    return Engine(bundle, EngineConfig(**{**SETTINGS, **changes}))


def open_network(bundle: Path, num_slots: int = 4096) -> Network:
    return Network(bundle, num_slots=num_slots, provider="cpu", threads=1)


def prompt_logits(bundle: Path, prompt: Prompt) -> np.ndarray:
    """[T, V] of a whole prompt in one step."""
    runner = OnnxRunner(bundle, EngineConfig(**SETTINGS))
    length = len(prompt.token_ids)
    sequence = Sequence(GenerateRequest("golden", prompt, SamplingParams(max_tokens=1, seed=0)), 0, 4096)
    sequence.pages = list(range(-(-length // PAGE_SIZE)))
    for idx, span in enumerate(prompt.spans):
        sequence.tile_slots[idx] = list(range(span.first_tile, span.first_tile + span.num_tiles))
    if len(prompt.tiles):
        runner._encode([TileJob(sequence, tile, tile) for tile in range(len(prompt.tiles))])
    rows = np.arange(length)
    embeds = runner._embeds(Chunk.of(sequence, 0, length))
    return runner.network.step(embeds, rows, rows, rows, rows)
