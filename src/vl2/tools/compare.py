"""Two models on the same questions: how much better is one, and how sure is that?

Differences are taken question by question, so that what makes a question hard cancels out; intervals are 95 %, by the
normal approximation.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vl2.core.errors import RequestError, SetupError
from vl2.core.types import ImagePart, Message, SamplingParams, fold_deltas
from vl2.llm import LLM
from vl2.tools.evaluate import Answer, Question, ask_all
from vl2.tools.scoring import anls, mean, score

NORMAL_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and half the width of its 95 % interval."""

    value: float
    margin: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        if len(values) < 2:
            return cls(mean(values), math.inf)
        centre = mean(values)
        variance = sum((value - centre) ** 2 for value in values) / (len(values) - 1)
        return cls(centre, NORMAL_95 * math.sqrt(variance / len(values)))


@dataclass(frozen=True, slots=True)
class Row:
    """One task, or all. `right`, `anls` and `iou` are of (the model, the other, the difference)."""

    task: str
    num_questions: int
    right: tuple[Estimate, Estimate, Estimate]
    anls: tuple[Estimate, Estimate, Estimate] | None  # of questions whose answer is text
    iou: tuple[Estimate, Estimate, Estimate] | None  # of questions whose answer has boxes
    num_same: int  # answers that are equal to the letter


async def answer_all(
    llm: LLM,
    questions: Sequence[Question],
    pictures: Path,
    *,
    concurrency: int,
    on_answer: Callable[[Answer], None] = lambda _: None,
) -> list[Answer]:
    """Greedy answers of a model that is started here and stopped again, in the questions' order.

    Raises: SetupError when a picture is missing.
    """
    await llm.start()
    try:
        return await ask_all(
            questions, lambda q: _converse(llm, q, pictures), concurrency=concurrency, on_answer=on_answer
        )
    finally:
        await llm.stop()


async def _converse(llm: LLM, question: Question, pictures: Path) -> Answer:
    messages: list[Message] = []
    text, started_s = "", time.monotonic()
    for number, (asked, _) in enumerate(question.turns):
        images = [ImagePart(_read(pictures / name)) for name in question.pictures] if number == 0 else []
        messages.append(Message.from_parts("user", [*images, asked]))
        try:
            deltas = [delta async for delta in llm.stream(messages, SamplingParams(temperature=0))]
        except RequestError as error:  # say, too long for the model: a wrong answer
            text = f"[refused: {error}]"
            break
        text = fold_deltas(deltas).choices[0].text
        messages.append(Message("assistant", text))
    return Answer(question, text, score(question.turns[-1][1], text), time.monotonic() - started_s)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(f"a picture is missing: {error}") from None


def compare(own: Iterable[Answer], others: Iterable[Answer]) -> list[Row]:
    """By task, and of all questions last."""
    groups: dict[str, list[tuple[Answer, Answer]]] = defaultdict(list)
    for one, other in zip(own, others, strict=True):
        for task in (one.question.task, "all"):
            groups[task].append((one, other))
    names = sorted(groups, key=lambda task: (task == "all", task))
    return [_row(name, groups[name]) for name in names]


def _row(task: str, pairs: list[tuple[Answer, Answer]]) -> Row:
    boxed = [pair for pair in pairs if pair[0].score.ious]
    texts = [pair for pair in pairs if not pair[0].score.ious]
    return Row(
        task,
        len(pairs),
        _estimates(pairs, lambda answer: answer.score.right),
        _estimates(texts, lambda answer: anls(answer.question.turns[-1][1], answer.text)) if texts else None,
        _estimates(boxed, lambda answer: mean(answer.score.ious)) if boxed else None,
        sum(one.text == other.text for one, other in pairs),
    )


def _estimates(
    pairs: list[tuple[Answer, Answer]], measure: Callable[[Answer], float]
) -> tuple[Estimate, Estimate, Estimate]:
    values = [(measure(one), measure(other)) for one, other in pairs]
    return (
        Estimate.of([one for one, _ in values]),
        Estimate.of([other for _, other in values]),
        Estimate.of([one - other for one, other in values]),
    )
