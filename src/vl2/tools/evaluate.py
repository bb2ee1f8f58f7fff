"""Ask a running server a file of questions with known answers, and tabulate what it got right.

The file has one JSON object a line: `image`, `question`, `answer`; or `id`; `pictures`, file names in one folder;
`turns`, [[question, expected], …], of which only the last is scored; and the labels to group by: `task`, `lang`,
`tiles`. nano's file and pictures come from `nano/evalset.py`; any other model and file work as well.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx

from vl2.core.errors import SetupError
from vl2.tools.scoring import IOU_FOUND, Names, Score, mean, score


@dataclass(frozen=True, slots=True)
class Question:
    """One line of the file."""

    id: int
    pictures: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]
    task: str
    lang: str
    tiles: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said to the last turn. `latency_s` is from the request to the whole answer."""

    question: Question
    text: str
    score: Score
    latency_s: float


def read_questions(path: Path) -> list[Question]:
    """Parse the file.

    Raises: SetupError when it cannot be read, naming the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SetupError(f"cannot read the questions: {error}") from None
    return [_read_question(line, number, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _read_question(line: str, number: int, where: str) -> Question:
    try:
        raw = json.loads(line)
        if "question" in raw:
            turn = str(raw["question"]), str(raw["answer"])
            return Question(number, (str(raw["image"]),), (turn,), str(raw.get("task", "questions")), "", 1)
        turns = tuple((str(q), str(a)) for q, a in raw["turns"])
        return Question(int(raw["id"]), tuple(raw["pictures"]), turns, raw["task"], raw["lang"], int(raw["tiles"]))
    except (ValueError, KeyError, TypeError) as error:
        raise SetupError(f"{where}: not a question: {error!r}") from None


async def evaluate(
    questions: Iterable[Question],
    pictures: Path,
    *,
    url: str,
    model: str = "default",
    api_key: str | None = None,
    concurrency: int = 8,
    on_answer: Callable[[Answer], None] = lambda _: None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> list[Answer]:
    """Ask all questions, `concurrency` at a time; answers come back in the questions' order.

    A question that the server refuses as invalid (400) counts as answered wrongly.

    Raises: SetupError when the server cannot be reached, or refuses us.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600, transport=transport) as client:
        return await ask_all(
            questions, lambda q: _converse(client, q, pictures, model), concurrency=concurrency, on_answer=on_answer
        )


async def ask_all(
    questions: Iterable[Question],
    converse: Callable[[Question], Awaitable[Answer]],
    *,
    concurrency: int,
    on_answer: Callable[[Answer], None],
) -> list[Answer]:
    """`converse` about each, `concurrency` at a time; answers come back in the questions' order."""
    gate = asyncio.Semaphore(concurrency)

    async def ask(question: Question) -> Answer:
        async with gate:
            answer = await converse(question)
        on_answer(answer)
        return answer

    return list(await asyncio.gather(*map(ask, questions)))


async def _converse(client: httpx.AsyncClient, question: Question, pictures: Path, model: str) -> Answer:
    messages: list[dict[str, Any]] = []
    text = ""
    for number, (asked, _) in enumerate(question.turns):
        content: list[dict[str, Any]] = [{"type": "text", "text": asked}]
        if number == 0:
            images = [{"type": "image_url", "image_url": {"url": _data_url(pictures / p)}} for p in question.pictures]
            content = images + content
        messages.append({"role": "user", "content": content})
        start = time.monotonic()
        text = await _complete(client, messages, model)
        messages.append({"role": "assistant", "content": text})
    return Answer(question, text, score(question.turns[-1][1], text), time.monotonic() - start)


async def _complete(client: httpx.AsyncClient, messages: list[dict[str, Any]], model: str) -> str:
    body = {"model": model, "messages": messages, "temperature": 0}
    try:
        response = await client.post("/v1/chat/completions", json=body)
    except httpx.HTTPError as error:
        raise SetupError(f"the server at {client.base_url} cannot be reached: {error!r}") from None
    if response.status_code == 400:  # this question is too much for the model, say too long: a wrong answer
        return f"[refused: {response.text[:300]}]"
    if response.status_code != 200:
        raise SetupError(f"the server answered {response.status_code}: {response.text[:300]}")
    return str(response.json()["choices"][0]["message"]["content"] or "")


@lru_cache(maxsize=64)
def _data_url(path: Path) -> str:
    kind = "jpeg" if path.suffix.lower() in (".jpg", ".jpeg") else "png"
    try:
        return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError as error:
        raise SetupError(
            f"a picture is missing: {error}. Draw nano's with: python nano/evalset.py --pictures FOLDER"
        ) from None


def summarise(answers: Iterable[Answer]) -> dict[str, dict[str, float]]:
    """Means by task, by task and language, by task and tile count.

    `right` 0-1; where there are boxes, `boxes_found` (share of all boxes at IoU ≥ 0.5) and `mean_iou`; where lists are
    expected, `names_found` (share of all expected names) and `names_true` (share of all that were said).
    """
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        q = answer.question
        tiles = "1 tile" if q.tiles == 1 else "2-5 tiles" if q.tiles <= 5 else "6-9 tiles"
        for key in (q.task, f"{q.task} · {q.lang}", f"{q.task} · {tiles}"):
            groups[key].append(answer)
    table = {}
    for key, members in sorted(groups.items()):
        row = {"n": len(members), "right": round(mean(a.score.right for a in members), 4)}
        ious = [value for a in members for value in a.score.ious]
        if ious:
            row["boxes_found"] = round(mean(float(value >= IOU_FOUND) for value in ious), 4)
            row["mean_iou"] = round(mean(ious), 4)
        table[key] = row | _names([a.score.names for a in members if a.score.names is not None])
    return table


def _names(lists: list[Names]) -> dict[str, float]:
    """Nothing where each is a list of one, which `right` tells all about."""
    if all(names.expected == 1 for names in lists):
        return {}
    expected, answered, shared = (sum(values) for values in zip(*map(astuple, lists), strict=True))
    return {"names_found": round(shared / expected, 4), "names_true": round(shared / answered, 4)}
