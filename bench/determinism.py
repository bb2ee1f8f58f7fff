"""200 random requests, each alone and then all at once in random order, three times: how many give the same bits.

    python bench/determinism.py [--requests 200] [FOLDER …]

Without folders: nano. Compared are token ids, logprobs and the logprobs of three alternatives of every token, in
float32 and bfloat16. The concurrent rounds differ in chunk sizes, and in the last one the page pool is so small that
sequences are preempted. Ends with status 1 when one request differs.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from common import NANO, picture_prompt, report, text_prompt

from vl2.checkpoint.folder import read_model_config
from vl2.core.config import EngineConfig
from vl2.core.types import GenerateRequest, Prompt, SamplingParams
from vl2.engine.engine import Engine

Answers = dict[tuple[str, int], list[Any]]
ROUNDS = ({"max_step_tokens": 2048}, {"max_step_tokens": 100, "max_step_tiles": 2}, {"max_sequences": 12})


def random_requests(folder: Path, count: int) -> list[GenerateRequest]:
    config = read_model_config(folder)
    dice = random.Random(1)
    requests = []
    for i in range(count):
        prompt: Prompt = text_prompt(dice.randint(1, 150), seed=i)
        if dice.random() < 0.4:
            prompt = picture_prompt(config.tile_geometry, 3, dice.randint(2, 40), seed=dice.randint(0, 9))
        params = SamplingParams(
            max_tokens=dice.randint(1, 32),
            seed=dice.randint(0, 3),
            temperature=dice.choice([0.0, 1.0]),
            top_p=dice.choice([1.0, 0.9]),
            repetition_penalty=dice.choice([1.0, 1.1]),
            n=dice.choice([1, 2]),
            ignore_eos=True,
            logprobs=3,
        )
        requests.append(GenerateRequest(f"{i}", prompt, params))
    return requests


def take(engine: Engine, answers: Answers) -> None:
    for event in engine.step():
        assert event.error is None, event.error
        answers.setdefault((event.request_id, event.choice_idx), []).append((event.token_id, event.logprobs))


def alone(folder: Path, config: EngineConfig, requests: list[GenerateRequest]) -> Answers:
    engine, answers = Engine(folder, replace(config, prefix_cache=False)), {}
    for request in requests:
        engine.add(request)
        while engine.has_work:
            take(engine, answers)
    return answers


def together(folder: Path, config: EngineConfig, requests: list[GenerateRequest], seed: int) -> tuple[Answers, int]:
    """Answers, and how often a sequence was preempted."""
    engine, answers, dice = Engine(folder, config), {}, random.Random(seed)
    order = dice.sample(requests, len(requests))
    while order or engine.has_work:
        for _ in range(dice.choice([0, 0, 1, 3])):
            if order:
                engine.add(order.pop())
        if engine.has_work:
            take(engine, answers)
    return answers, engine.stats().preemptions_total


@click.command()
@click.option("--requests", "count", default=200, show_default=True)
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
def main(count: int, folders: tuple[Path, ...]) -> None:
    results: dict[str, Any] = {}
    for folder in folders or (NANO,):
        requests = random_requests(folder, count)
        for dtype in ("float32", "bfloat16"):
            config = EngineConfig(device="cpu", dtype=dtype, max_context_tokens=640)
            expected = alone(folder, config, requests)
            preempted, same = 0, set(expected)
            for seed, changes in enumerate(ROUNDS):
                pool = {"kv_cache_tokens": 640} if seed == len(ROUNDS) - 1 else {}
                answers, times = together(folder, replace(config, **changes, **pool), requests, seed)
                preempted += times
                same &= {key for key in expected if answers[key] == expected[key]}
            differing = {request_id for request_id, _ in set(expected) - same}
            name = folder.parent.name if folder.name == "ckpt" else folder.name
            results[f"{name}, {dtype}: identical requests"] = f"{count - len(differing)} of {count}"
            results[f"{name}, {dtype}: preemptions on the way"] = preempted
    report("determinism", results)
    sys.exit(any(not value.startswith(f"{count} ") for value in results.values() if isinstance(value, str)))


if __name__ == "__main__":
    main()
