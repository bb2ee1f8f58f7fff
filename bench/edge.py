"""The edge runtime beside the torch path, on a CPU: frames/s of a one-word answer, tokens/s, and right answers.

    python bench/edge.py [--model FOLDER] [--rounds 7]
    python nano/evalset.py --pictures /tmp/scenes --first 1000
    python bench/edge.py --questions 1000 --pictures /tmp/scenes

A frame is a JPEG of 384 × 384 that was never seen before: decoding, tiling, vision tower, prompt, and two tokens, as
for one word and the end. Rounds of all engines take turns, so that a busy machine slows down all of them alike.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from common import NANO, report
from PIL import Image

from vl2 import LLM, Message, SamplingParams
from vl2.core.config import EngineConfig
from vl2.edge.export import export
from vl2.tools.evaluate import Question, read_questions
from vl2.tools.scoring import score

QUESTION = "How many cats are there?"
FRAMES, TOKENS = 10, 100
ENGINES = {
    "torch": {"engine": "torch"},
    "torch float32": {"engine": "torch", "dtype": "float32"},
    "onnx fp32": {"engine": "onnx"},
    "onnx int8": {"engine": "onnx"},
}


def frames(seed: int, count: int) -> Iterator[bytes]:
    """Smooth pictures with some noise, as a camera's."""
    dice = np.random.default_rng(seed)
    for _ in range(count):
        small = Image.fromarray(dice.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((384, 384), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (pixels + dice.integers(-6, 7, pixels.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=90)
        yield file.getvalue()


def open_engines(model: Path, folder: Path, names: Collection[str] = tuple(ENGINES)) -> dict[str, LLM]:
    for precision in ("fp32", "int8"):
        export(model, folder / precision, precision)
    places = {"onnx fp32": folder / "fp32", "onnx int8": folder / "int8"}
    return {
        name: LLM(str(places.get(name, model)), engine=EngineConfig(device="cpu", **options))
        for name, options in ENGINES.items()
        if name in names
    }


def seconds_per_frame(llm: LLM, seed: int) -> float:
    pictures = list(frames(seed, FRAMES))
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    started_s = time.perf_counter()
    for picture in pictures:
        llm.chat([Message("user", f"<image>\n{QUESTION}", (picture,))], params)
    return (time.perf_counter() - started_s) / FRAMES


def seconds_per_token(llm: LLM, seed: int) -> float:
    """While one answer is generated."""
    stream = llm.stream_sync(f"Hello {seed}", SamplingParams(max_tokens=TOKENS + 1, ignore_eos=True))
    next(stream)
    started_s = time.perf_counter()
    assert sum(1 for _ in stream) == TOKENS
    return (time.perf_counter() - started_s) / TOKENS


def speeds(engines: dict[str, LLM], rounds: int) -> dict[str, Any]:
    results: dict[str, Any] = {"onnxruntime": onnxruntime.__version__}
    for what, measure in {"frames/s": seconds_per_frame, "tokens/s": seconds_per_token}.items():
        for name, times in _take_turns(engines, measure, rounds).items():
            results[f"{name}, {what}, median"] = 1 / statistics.median(times)
            results[f"{name}, {what}, best round"] = 1 / min(times)
    return results


def _take_turns(engines: dict[str, LLM], measure: Callable[[LLM, int], float], rounds: int) -> dict[str, list[float]]:
    """The first round warms up and is thrown away."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for seed in range(rounds + 1):
        for name, llm in engines.items():
            times[name].append(measure(llm, seed))
    return {name: taken[1:] for name, taken in times.items()}


def right_answers(llm: LLM, questions: list[Question], pictures: Path) -> list[float]:
    """Score of each question, 0 … 1."""
    return [score(question.turns[-1][1], _ask(llm, question, pictures)).right for question in questions]


def _ask(llm: LLM, question: Question, pictures: Path) -> str:
    messages: list[Message] = []
    for number, (asked, _) in enumerate(question.turns):
        images = tuple(pictures / name for name in question.pictures) if number == 0 else ()
        messages.append(Message("user", "<image>\n" * len(images) + asked, images))
        messages.append(Message("assistant", llm.chat(messages).text))
    return messages[-1].content


def accuracy(engines: dict[str, LLM], count: int, pictures: Path) -> dict[str, Any]:
    every = read_questions(Path(__file__).parents[1] / "nano/evalset.jsonl")
    questions = [every[i * len(every) // count] for i in range(count)]
    scores = {name: right_answers(llm, questions, pictures) for name, llm in engines.items() if name != "torch"}
    results: dict[str, Any] = {"questions": count}
    for name, own in scores.items():
        results[f"{name}, right %"] = 100 * statistics.fmean(own)
        results[f"{name}, other than torch float32"] = sum(
            a != b for a, b in zip(own, scores["torch float32"], strict=True)
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=NANO)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--questions", type=int, help="ask so many of nano's questions instead")
    parser.add_argument("--pictures", type=Path, help="their pictures")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=tuple(ENGINES), help="only these")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engines = open_engines(a.model, Path(folder), a.engines)
        results = accuracy(engines, a.questions, a.pictures) if a.questions else speeds(engines, a.rounds)
        for llm in engines.values():
            llm.close()
    report("edge", results)


if __name__ == "__main__":
    main()
