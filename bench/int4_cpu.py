"""4 bits on a CPU beside bfloat16: decoding steps in turns, the bytes they must read, resident memory.

    python bench/int4_cpu.py fast [tiny | FOLDER] [--rounds 8] [--threads 2]

The floor is the bytes of the weights that a token passes over the bandwidth of a plain read, measured in the same run.
Random weights; the least of all rounds counts, as others' work can only add to it. The mode is always the fast one, and
the word must be given: `common.py` looks for it, and without it takes from the matrix libraries the instructions that
the deterministic mode does without.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path

import shapes
import torch
from common import report, request, text_prompt
from cpu_machine import best_s
from floors import decode_bytes

from vl2.core.config import EngineConfig
from vl2.engine.engine import Engine

PROMPT, ANSWER = 32, 24


def build(folder: Path, mode: str, threads: int) -> Engine:
    config = EngineConfig(
        device="cpu", dtype="bfloat16", random_weights=True, quantization=mode, deterministic=False, threads=threads,
        kv_cache_tokens=4096, prefix_cache=False, image_cache_tiles=16,
    )  # fmt: skip
    return Engine(folder, config)


def bytes_per_token(engine: Engine) -> float:
    moe = engine.runner.model_config.language.moe
    return decode_bytes(engine.runner, 1, 0, moe.num_active if moe else 0)


def step_seconds(engine: Engine, seed: int) -> list[float]:
    engine.add(request("x", text_prompt(PROMPT, seed=seed), ANSWER))
    times = []
    while engine.has_work:
        started_s = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - started_s)
    return times[3:]


def read_bytes_per_s() -> float:
    data = torch.ones(2**27, dtype=torch.float32)
    return data.nbytes / best_s(data.sum, repeats=8)


def resident_gb(folder: Path, mode: str, threads: int, answer: multiprocessing.SimpleQueue) -> None:
    """In a process of its own: the most that it ever held, after one answer."""
    step_seconds(build(folder, mode, threads), 0)
    answer.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["fast"], help="see above")
    parser.add_argument("model", nargs="?", default="tiny", help="tiny, small, base, or a folder with a config.json")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    folder = Path(args.model)
    if args.model in shapes.LANGUAGE:
        folder = shapes.write(args.model, Path(tempfile.mkdtemp()) / args.model)
    results: dict[str, float | str] = {"model": args.model}
    for mode in ("auto", "int4"):
        context = multiprocessing.get_context("spawn")
        answer = context.SimpleQueue()
        process = context.Process(target=resident_gb, args=(folder, mode, args.threads, answer))
        process.start()
        results[f"resident, {mode}, GB"] = answer.get()
        process.join()
    engines = {mode: build(folder, mode, args.threads) for mode in ("auto", "int4")}
    times: dict[str, list[float]] = {mode: [] for mode in engines}
    bandwidth = []
    for round_idx in range(args.rounds):
        bandwidth.append(read_bytes_per_s())
        for mode, engine in engines.items():
            times[mode] += step_seconds(engine, round_idx)
    results["plain read, GB/s"] = max(bandwidth) / 1e9
    for mode, engine in engines.items():
        floor_s = bytes_per_token(engine) / max(bandwidth)
        results[f"{mode}: ms a token, least"] = 1e3 * min(times[mode])
        results[f"{mode}: ms a token, median"] = 1e3 * statistics.median(times[mode])
        results[f"{mode}: floor, ms"] = 1e3 * floor_s
        results[f"{mode}: share of the floor"] = floor_s / min(times[mode])
    results["int4 over bfloat16, least"] = min(times["auto"]) / min(times["int4"])
    results["int4 over bfloat16, medians"] = statistics.median(times["auto"]) / statistics.median(times["int4"])
    report("int4-cpu", results)


if __name__ == "__main__":
    main()
