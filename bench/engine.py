"""The engine on a CPU: the cost of determinism, stalls, and what the caches save.

    python bench/engine.py [MODEL FOLDER]

- determinism: time of a mixed load (4 picture questions, 32 tokens each) with the mode over without it, both formats
- stalls: gaps between tokens of 4 running streams, undisturbed, while 2,000-token prompts arrive, while pictures arrive
- caches: time to first token of a second question about the same picture over the first's, prefix cache off
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np
from common import NANO, drain, median, picture_prompt, report, request, text_prompt

from vl2.core.config import EngineConfig
from vl2.engine.engine import Engine

IMAGE_ID, NUM_STREAMS, STREAM_TOKENS = 3, 4, 200


def build(folder: Path, **changes: object) -> Engine:
    return Engine(folder, EngineConfig(device="cpu", prefix_cache=False, **changes))  # type: ignore[arg-type]


def determinism_cost(folder: Path, dtype: str) -> float:
    """Seconds with the mode over seconds without, alternating so that the machine's moods hit both."""
    engines = [build(folder, dtype=dtype, deterministic=mode) for mode in (True, False)]
    seconds: list[list[float]] = [[], []]
    for round_idx in range(4):
        for engine, own in zip(engines, seconds, strict=True):
            geometry = engine.runner.model_config.tile_geometry
            for i in range(4):
                prompt = picture_prompt(geometry, IMAGE_ID, 32, seed=100 * round_idx + i)
                engine.add(request(f"{i}", prompt, 32))
            own.append(drain(engine))
    with_mode, without = (statistics.median(own[1:]) for own in seconds)
    return with_mode / without


def stalls(folder: Path) -> dict[str, float]:
    """Milliseconds between two tokens of a stream."""
    engine = build(folder)
    geometry = engine.runner.model_config.tile_geometry

    def tile_s(seed: int) -> float:
        """Time to encode one tile."""
        engine.add(request("tile", picture_prompt(geometry, IMAGE_ID, 8, seed=9000 + seed), 1))
        before = engine.runner.vision_clock.seconds
        drain(engine)
        return engine.runner.vision_clock.seconds - before

    results = {"one tile's encoding, ms": 1000 * median(5, tile_s)}
    arrivals = {
        "undisturbed": lambda i: None,
        "2,000-token prompts arrive": lambda i: text_prompt(2000, seed=i),
        "pictures arrive": lambda i: picture_prompt(geometry, IMAGE_ID, 16, seed=5000 + i),
    }
    for name, arrival in arrivals.items():
        gaps: list[float] = []
        last: dict[str, float] = {}

        def on_token(stream: str, at_s: float, gaps: list[float] = gaps, last: dict[str, float] = last) -> None:
            if stream.startswith("stream") and stream in last:
                gaps.append(at_s - last[stream])
            last[stream] = at_s

        for i in range(NUM_STREAMS):
            engine.add(request(f"stream {i}", text_prompt(64, seed=70 + i), STREAM_TOKENS))
        num_arrived, started_s = 0, time.perf_counter()
        while any(sequence.request_id.startswith("stream") for sequence in engine.scheduler.sequences()):
            for event in engine.step():
                assert event.error is None, event.error
                on_token(event.request_id, time.perf_counter())
            if time.perf_counter() - started_s > 0.5 * (num_arrived + 1):
                prompt = arrival(num_arrived)
                num_arrived += 1
                if prompt is not None:
                    engine.add(request(f"arrival {num_arrived}", prompt, 1))
        drain(engine)
        results[f"gap, {name}, median, ms"] = 1000 * statistics.median(gaps)
        results[f"gap, {name}, p99, ms"] = 1000 * float(np.quantile(gaps, 0.99))
    return results


def image_cache(folder: Path) -> dict[str, float]:
    """First and second question about a picture: seconds to the first token, tiles encoded by the second."""
    engine = build(folder)
    geometry = engine.runner.model_config.tile_geometry

    def ask(seed: int) -> float:
        engine.add(request("question", picture_prompt(geometry, IMAGE_ID, 16, seed), 1))
        return drain(engine)

    first = median(5, lambda i: ask(300 + i))
    tiles_before = engine.stats().tiles_encoded_total
    second = median(4, lambda i: ask(300 + i))
    return {
        "first question about a picture, ms": 1000 * first,
        "second over first, time to first token": second / first,
        "tiles encoded by second questions": engine.stats().tiles_encoded_total - tiles_before,
    }


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else NANO
    results = {
        f"determinism, {dtype}: time over without": determinism_cost(folder, dtype) for dtype in ("float32", "bfloat16")
    }
    results |= image_cache(folder)
    results |= stalls(folder)
    report("engine", results)


if __name__ == "__main__":
    main()
