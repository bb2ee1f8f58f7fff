"""`--deterministic` on a GPU: the same bits whatever else runs, and what that costs.

    python bench/deterministic_gpu.py [tiny] [small] [base] [nano] [FOLDER …] [--dtype bfloat16] [--skip-cost]
                                      [--requests 128] [--output FILE]

Each request is first computed alone. Then all of them in groups of 2, 7, 32 and 128, with prompts in chunks of 7, 64
and 512 tokens, with a preemption every few steps, and with a prefix cache, cold and warm: token ids and the bits of the
logprobs must be those of the request alone. Pictures are encoded anew in every round. Real shapes have random weights.

The cost is that of 256 requests of 1,024 tokens in and 128 out, with and without the mode, one after the other on the
same card. Ends with status 1 when an answer differs.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import shapes
import torch
from common import NANO, circumstances, drain, picture_prompt, request, text_prompt

from vl2.core.config import EngineConfig
from vl2.core.types import GenerateRequest, QueueOptions, SamplingParams
from vl2.engine.engine import Engine
from vl2.engine.image_cache import TileCache

IMAGE_ID = 3
Answer = list[tuple[int, Any]]


@dataclass(frozen=True)
class Round:
    """One way to run all requests."""

    name: str
    group: int  # so many are queued at once
    chunk: int = 8192  # prompt tokens of a step
    preempt_every: int = 0  # steps; 0: never
    salt: str | None = None  # of the prefix cache; None: it is off
    has_logprobs: bool = True
    most: int | None = None  # only so many of the requests


ROUNDS = (
    Round("alone, without logprobs", 1, has_logprobs=False),
    *(Round(f"{group} at once", group) for group in (2, 7, 32, 128)),
    Round("128 at once, without logprobs", 128, has_logprobs=False),
    Round("chunks of 7", 7, chunk=7, most=14),
    *(Round(f"chunks of {chunk}", 32, chunk=chunk) for chunk in (64, 512)),
    Round("preemptions", 32, preempt_every=5),
    Round("preemptions and chunks of 64", 128, chunk=64, preempt_every=7),
    Round("prefix cache, cold", 7, salt="a"),
    Round("prefix cache, warm", 32, salt="a"),
    Round("prefix cache, warm, preemptions", 128, preempt_every=5, salt="a"),
)


def random_requests(engine: Engine, count: int) -> list[GenerateRequest]:
    """Prompts of which some begin alike and some are about a picture; greedy ones and drawn ones."""
    dice, geometry, requests = random.Random(1), engine.runner.model_config.tile_geometry, []
    for i in range(count):
        own = text_prompt(dice.choice([1, 2, 15, 16, 17, 40, 100, dice.randint(1, 700)]), seed=i)
        prompt = own
        if dice.random() < 0.3:
            beginning = text_prompt(300, seed=10_000).token_ids[: dice.choice([16, 160, 300])]
            prompt = replace(own, token_ids=[*beginning, *own.token_ids])
        elif dice.random() < 0.3:
            prompt = picture_prompt(geometry, IMAGE_ID, dice.randint(2, 40), seed=dice.randint(0, 9))
        params = SamplingParams(
            max_tokens=dice.randint(8, 40),
            seed=dice.randint(0, 3),
            temperature=dice.choice([0.0, 1.0]),
            top_p=dice.choice([1.0, 0.9]),
            top_k=dice.choice([0, 40]),
            ignore_eos=True,
            logprobs=2,
        )
        requests.append(GenerateRequest(f"{i}", prompt, params))
    return requests


def run(engine: Engine, requests: list[GenerateRequest], how: Round) -> tuple[dict[str, Answer], int]:
    """Answers by request, and how often one was preempted."""
    scheduler, before = engine.scheduler, engine.stats().preemptions_total
    scheduler.tiles = TileCache(scheduler.tiles.num_slots)
    scheduler.pacer._max_prefill_tokens = how.chunk
    scheduler.pacer._min_prefill_tokens = min(how.chunk, 16)
    engine._has_prefix_cache = how.salt is not None
    answers: dict[str, Answer] = {}
    for start in range(0, len(requests), how.group):
        queued = requests[start : start + how.group]
        for asked in queued:
            params = asked.params if how.has_logprobs else replace(asked.params, logprobs=None)
            engine.add(replace(asked, params=params, options=QueueOptions(cache_salt=how.salt or "")))
        steps, left = 0, 2 * len(queued)  # preemptions: with more of them nothing might ever end
        while engine.has_work:
            steps += 1
            if how.preempt_every and steps % how.preempt_every == 0 and scheduler.running and left:
                scheduler.preempt(scheduler.running[steps % len(scheduler.running)])
                left -= 1
            for event in engine.step():
                assert event.error is None, event.error
                answers.setdefault(event.request_id, []).append((event.token_id, event.logprobs))
    return answers, engine.stats().preemptions_total - before


def difference(expected: Answer, answer: Answer, has_logprobs: bool) -> str | None:
    """Where they part first; None: nowhere."""
    for place, (one, other) in enumerate(zip(expected, answer, strict=True)):
        if one[0] != other[0]:
            return f"token {place}: {one[0]}, not {other[0]}"
        if has_logprobs and one[1] != other[1]:
            return f"logprob of token {place}: {one[1].logprob!r}, not {other[1].logprob!r}"
    return None


def compare(engine: Engine, requests: list[GenerateRequest], name: str) -> dict[str, Any]:
    results: dict[str, Any] = {}
    started_s = time.perf_counter()
    expected, _ = run(engine, requests, Round("alone", 1))
    print(f"{name:8} {'alone':42} {time.perf_counter() - started_s:8.1f} s", flush=True)
    for how in ROUNDS:
        started_s, asked = time.perf_counter(), requests[: how.most]
        answers, preemptions = run(engine, asked, how)
        found = {one.request_id: difference(expected[one.request_id], answers[one.request_id], how.has_logprobs)
                 for one in asked}  # fmt: skip
        same = sum(where is None for where in found.values())
        results[f"{how.name}: identical"] = f"{same} of {len(asked)}"
        taken = f"{time.perf_counter() - started_s:8.1f} s" + (f", {preemptions} preemptions" if preemptions else "")
        print(f"{name:8} {how.name:42} {taken}: {same} of {len(asked)} identical", flush=True)
        for request_id, where in [pair for pair in found.items() if pair[1] is not None][:3]:
            length = len(requests[int(request_id)].prompt.token_ids)
            print(f"{name:8}   request {request_id} ({length} prompt tokens): {where}", flush=True)
    return results


def throughput(engine: Engine) -> float:
    """Output tokens a second; the median of three runs after one for warming up."""
    rates = []
    for turn in range(4):
        for i in range(256):
            engine.add(request(f"{i}", text_prompt(1024, seed=5000 + 256 * turn + i), 128))
        rates.append(256 * 128 / drain(engine))
    print(f"         256 requests, tok/s: {', '.join(f'{rate:.0f}' for rate in rates)}", flush=True)
    return statistics.median(rates[1:])


def build(folder: Path, dtype: str, is_random: bool, is_deterministic: bool) -> Engine:
    gc.collect()
    torch.cuda.empty_cache()
    started_s = time.perf_counter()
    engine = Engine(
        folder,
        EngineConfig(
            device="cuda", dtype=dtype, random_weights=is_random, deterministic=is_deterministic, prefix_cache=False,
            max_sequences=256, max_step_tokens=8192, max_step_tiles=16,
        ),
    )  # fmt: skip
    kind = "deterministic" if is_deterministic else "fast"
    print(f"{folder.name:8} {kind} engine ready in {time.perf_counter() - started_s:.1f} s", flush=True)
    return engine


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    is_random = name in shapes.LANGUAGE
    engine = build(folder, arguments.dtype, is_random, True)
    results = compare(engine, random_requests(engine, arguments.requests), name)
    if is_random and not arguments.skip_cost:
        engine.scheduler.pacer._max_prefill_tokens = 8192
        engine._has_prefix_cache = False
        results["256 requests, deterministic, tok/s"] = exact = throughput(engine)
        del engine
        results["256 requests, fast, tok/s"] = fast = throughput(build(folder, arguments.dtype, True, False))
        results["share of the fast mode's throughput"] = exact / fast
        print(f"{name:8} {'share of the throughput that is left':42} {exact / fast:8.1%}", flush=True)
    return results


def folder_of(name: str, scratch: Path) -> Path:
    if name in shapes.LANGUAGE:
        return shapes.write(name, scratch / name)
    return NANO if name == "nano" else Path(name)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=["nano", "tiny", "small"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--skip-cost", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    differs = False
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.models:
            results = measure(name, folder_of(name, Path(scratch)), arguments)
            card = {"gpu": torch.cuda.get_device_name(), "model": name, "dtype": arguments.dtype}
            line = json.dumps({**circumstances("deterministic_gpu"), **card, **results})
            print(line, flush=True)
            if arguments.output:
                with arguments.output.open("a") as file:
                    file.write(line + "\n")
            pairs = [value.split(" of ") for value in results.values() if isinstance(value, str)]
            differs |= any(same != total for same, total in pairs)
    sys.exit(differs)


if __name__ == "__main__":
    main()
