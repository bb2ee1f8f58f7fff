"""nano in process: time to first token of a picture question, tokens/s of one stream and of eight.

    python bench/nano.py [MODEL FOLDER]

A picture of 384 × 384 (421 tokens) and 32 text tokens, both caches cold; medians of five.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from common import NANO, drain, median, picture_prompt, report, request

from vl2.core.config import EngineConfig
from vl2.engine.engine import Engine

IMAGE_ID, NUM_TOKENS = 3, 256


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else NANO
    engine = Engine(folder, EngineConfig(device="cpu", prefix_cache=False))
    geometry = engine.runner.model_config.tile_geometry

    def first_token_s(i: int) -> float:
        engine.add(request("a", picture_prompt(geometry, IMAGE_ID, 32, seed=i + 1), 1))
        return drain(engine)

    def decoding_s(i: int, num_streams: int) -> float:
        """From the moment when all have their first token."""
        for stream in range(num_streams):
            prompt = picture_prompt(geometry, IMAGE_ID, 32, seed=1000 * num_streams + 10 * (i + 1) + stream)
            engine.add(request(f"{stream}", prompt, NUM_TOKENS))
        while any(sequence.num_output_tokens == 0 for sequence in engine.scheduler.sequences()):
            engine.step()
        missing = sum(NUM_TOKENS - sequence.num_output_tokens for sequence in engine.scheduler.sequences())
        started_s = time.perf_counter()
        drain(engine)
        return (time.perf_counter() - started_s) / missing

    report(
        "nano",
        {
            "dtype": engine.info.dtype,
            "picture question to first token, ms": 1000 * median(5, first_token_s),
            "one stream, tokens/s": 1 / median(5, lambda i: decoding_s(i, 1)),
            "eight streams, tokens/s together": 1 / median(5, lambda i: decoding_s(i, 8)),
        },
    )


if __name__ == "__main__":
    main()
