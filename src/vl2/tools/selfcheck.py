"""Does a checkpoint work? Its files, weights and numbers, and what it says to four pictures that are drawn here."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vl2 import __version__
from vl2.checkpoint.folder import list_tensors, read_model_config
from vl2.core.errors import VL2Error
from vl2.core.model_config import ModelConfig
from vl2.core.types import Completion, Message, SamplingParams
from vl2.tools.plan_sizes import count_weights

if TYPE_CHECKING:
    from PIL import Image

    from vl2.llm import LLM

OK, WARNING, FAILED = "ok", "warning", "failed"
QUESTION = "<image>\nWhat is in the picture?"
PAPER = (236, 232, 220)
COLORS = {"red": (214, 40, 40), "blue": (40, 80, 210), "green": (40, 160, 70), "yellow": (240, 200, 30)}
PICTURES = ("red circle", "blue square", "green triangle", "yellow star")
MAX_TOKENS = 48
TOP_LOGPROBS = 5
LEAST_RIGHT = 3
"""Of four answers. A model that sees names the shapes; one whose weights are mixed up does not."""


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    status: str
    detail: str


def draw(name: str, side: int = 384) -> Image.Image:
    """A filled shape on paper, with smooth edges: the same pixels everywhere."""
    from PIL import Image, ImageDraw

    color, shape = name.split()
    large = 4 * side
    picture = Image.new("RGB", (large, large), PAPER)
    ImageDraw.Draw(picture).polygon(
        [(large * (0.5 + x), large * (0.5 + y)) for x, y in OUTLINES[shape]], fill=COLORS[color]
    )
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def _ring(num_points: int, *radii: float) -> list[tuple[float, float]]:
    """Points around the centre, the first at the top; their distances take turns."""
    angles = [2 * math.pi * point / num_points for point in range(num_points)]
    distances = [radii[point % len(radii)] for point in range(num_points)]
    return [(r * math.sin(angle), -r * math.cos(angle)) for r, angle in zip(distances, angles, strict=True)]


OUTLINES = {
    "circle": _ring(180, 0.26),
    "square": [(-0.24, -0.24), (0.24, -0.24), (0.24, 0.24), (-0.24, 0.24)],
    "triangle": [(0.0, -0.285), (0.295, 0.25), (-0.295, 0.25)],
    "star": _ring(10, 0.325, 0.137),
}
"""Shapes as polygons around the centre, in sides of the picture."""


def check(folder: Path, open_llm: Callable[[], LLM]) -> Iterator[Step]:
    """Steps as they are done; the first failure ends them. `open_llm` is called when the files are in order."""
    try:
        config = read_model_config(folder)
        yield Step("config", OK, _describe(config))
        yield _tensors(folder, config)
        started_s = time.monotonic()
        with open_llm() as llm:
            yield from _ask(llm, started_s)
    except VL2Error as error:
        yield Step("error", FAILED, f"{type(error).__name__}: {error}")


def _describe(config: ModelConfig) -> str:
    language = config.language
    kind = "MHA" if language.mla is None else "MLA"
    experts = "dense" if language.moe is None else f"{language.moe.num_experts} experts, {language.moe.topk_method}"
    return (
        f"{language.layers} layers of {language.hidden_size}, {kind} with {language.heads} heads, {experts}; "
        f"vocabulary {language.vocab_size}; tower {config.vision.layers} × {config.vision.width}; "
        f"context {language.max_position_embeddings}"
    )


def _tensors(folder: Path, config: ModelConfig) -> Step:
    """Shards and their headers; that names and shapes are the model's is checked when the weights are loaded."""
    tensors = list_tensors(folder)
    total = sum(info.num_bytes for info in tensors.values())
    formats = ", ".join(sorted({info.dtype for info in tensors.values()}))
    count = count_weights(config).total
    return Step("tensors", OK, f"{len(tensors)} in {formats}, {total:,} bytes; the model has {count:,} parameters")


def _ask(llm: LLM, started_s: float) -> Iterator[Step]:
    params = SamplingParams(max_tokens=MAX_TOKENS, logprobs=TOP_LOGPROBS)
    answers = {name: llm.chat([Message("user", QUESTION, (draw(name),))], params) for name in PICTURES[:1]}
    info = llm.info
    loaded = f"every name and shape is the model's; {info.dtype} on {info.device}, {info.num_pages} pages"
    yield Step(
        "weights", OK, f"{loaded}, first answer after {time.monotonic() - started_s:.1f} s; receipt {info.fingerprint}"
    )
    answers |= {name: llm.chat([Message("user", QUESTION, (draw(name),))], params) for name in PICTURES[1:]}
    yield _finite(answers)
    num_right = 0
    for name, answer in answers.items():
        is_right = all(word in answer.text.lower() for word in name.split())
        num_right += is_right
        yield Step(name, OK if is_right else WARNING, " ".join(answer.text.split()) or "(nothing)")
    status = OK if num_right >= LEAST_RIGHT else FAILED
    yield Step("answers", status, f"{num_right} of {len(PICTURES)} name colour and shape")


def _finite(answers: dict[str, Completion]) -> Step:
    values = [
        token.logprob
        for answer in answers.values()
        for choice in answer.choices
        for chosen in choice.logprobs or ()
        for token in (chosen, *chosen.top)
    ]
    is_fine = bool(values) and all(math.isfinite(value) and value <= 0 for value in values)
    return Step("logits", OK if is_fine else FAILED, f"{len(values)} log-probabilities, finite: {is_fine}")


def report(model: str, steps: list[Step]) -> str:
    """Markdown for a bug report: nothing of it names a user, a path or a key."""
    has_failed = any(step.status == FAILED for step in steps)
    lines = [
        f"### vl2 selfcheck: {model} {'FAILED' if has_failed else 'passed'}",
        "",
        f"vl2 {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        "",
        "| check | | |",
        "| --- | --- | --- |",
        *(f"| {step.name} | {step.status} | {step.detail.replace('|', chr(92) + '|')} |" for step in steps),
    ]
    return "\n".join(lines)
