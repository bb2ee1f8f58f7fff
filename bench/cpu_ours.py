"""The engine of `cpu.py`, in a process of its own.

    python bench/cpu_ours.py FOLDER bfloat16|float32 deterministic|fast [--random-weights] [--without-amx]

One JSON command a line on standard input, one result a line on standard output:

    {"do": "answer", "kind": "text" | "picture", "streams": S, "prompt_tokens": P, "tokens": N, "seed": I} → seconds
    {"do": "machine"} → bytes and operations a second
    {"do": "status"} → resident memory, and what a step reads and computes at the least
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from common import drain, picture_prompt, request, text_prompt
from cpu_machine import Machine
from floors import decode_bytes, prefill_flops, vision_flops

from vl2.core.config import EngineConfig
from vl2.core.stats import resident_bytes
from vl2.engine.engine import Engine
from vl2.ops.native import builds

FOLDER, DTYPE, MODE = sys.argv[1:4]
CONTEXT, KV_TOKENS, IMAGE_ID = 2048, 4096, 3


def main() -> None:
    if "--without-amx" in sys.argv:  # oneDNN is told by the environment
        builds.may_use_tiles = lambda: False
    started_s = time.perf_counter()
    config = EngineConfig(
        device="cpu",
        dtype=DTYPE,
        deterministic=MODE == "deterministic",
        random_weights="--random-weights" in sys.argv,
        prefix_cache=False,
        max_context_tokens=CONTEXT,
        kv_cache_tokens=KV_TOKENS,
        image_cache_tiles=32,
    )
    engine = Engine(Path(FOLDER), config)
    start_s = time.perf_counter() - started_s
    model = engine.runner.model_config

    def answer(command: dict) -> dict:
        for stream in range(command["streams"]):
            seed = 100 * command["seed"] + stream
            prompt = (
                text_prompt(command["prompt_tokens"], seed)
                if command["kind"] == "text"
                else picture_prompt(model.tile_geometry, IMAGE_ID, command["prompt_tokens"], seed)
            )
            engine.add(request(f"{stream}", prompt, command["tokens"]))
        return {"seconds": drain(engine)}

    def status(command: dict) -> dict:
        language, moe, own = model.language, model.language.moe, engine.runner.model
        picture_tokens = len(picture_prompt(model.tile_geometry, IMAGE_ID, 32, 0).token_ids)
        weights = decode_bytes(engine.runner, 1, 0, moe.num_experts if moe else 0)
        picture = weights + sum(p.nbytes for part in (own.vision, own.projector) for p in part.parameters())
        return {
            "text_bytes": weights,
            "picture_bytes": picture,
            "resident_bytes": resident_bytes(),
            "decode_bytes": {
                streams: decode_bytes(engine.runner, streams, 64, expected_experts(moe, streams)) for streams in (1, 8)
            },
            "text_flops": prefill_flops(language, 460, 460),
            "picture_flops": prefill_flops(language, picture_tokens, picture_tokens) + vision_flops(model, 1),
        }

    def machine(command: dict) -> dict:
        return asdict(Machine.measure())

    commands = {"answer": answer, "status": status, "machine": machine}
    print(json.dumps({"ready": start_s}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(commands[command["do"]](command)), flush=True)


def expected_experts(moe, num_tokens: int) -> float:
    """Distinct experts that tokens hit on average, if each chooses at random."""
    return moe.num_experts * (1 - (1 - moe.num_active / moe.num_experts) ** num_tokens)


if __name__ == "__main__":
    main()
