"""Scores of answers with one truth: exact text, and boxes by intersection over union. Pure functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

Box = tuple[int, int, int, int]
IOU_FOUND = 0.5
"""A box counts as found from this overlap on."""

_BOX = re.compile(r"\[(\d+), (\d+), (\d+), (\d+)\]")
_NAME = re.compile(r"<\|ref\|>(.*?)<\|/ref\|>")
_BETWEEN_NAMES = re.compile(r", |、")


@dataclass(frozen=True, slots=True)
class Score:
    """`right` is 0-1; `ious` has one number for each expected box, empty for answers without boxes; `names` is there
    for answers without them."""

    right: float
    ious: tuple[float, ...] = ()
    names: Names | None = None


@dataclass(frozen=True, slots=True)
class Names:
    """How many the expected list has, how many the answer has, and how many they share, in whatever order."""

    expected: int
    answered: int
    shared: int


def iou(a: Box, b: Box) -> float:
    """Shared area over united area, 0-1."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0, width) * max(0, height)
    united = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / united if united > 0 else 0.0


def boxes(text: str) -> list[Box]:
    """All boxes of an answer, in order."""
    return [(int(m[0]), int(m[1]), int(m[2]), int(m[3])) for m in _BOX.findall(text)]


def match_boxes(expected: list[Box], answered: list[Box]) -> list[float]:
    """IoU of each expected box with its partner. Partners are paired best first; each answered box serves once."""
    pairs = sorted(((iou(e, a), i, j) for i, e in enumerate(expected) for j, a in enumerate(answered)), reverse=True)
    best, used = [0.0] * len(expected), set()
    done: set[int] = set()
    for value, i, j in pairs:
        if i not in done and j not in used:
            done.add(i)
            used.add(j)
            best[i] = value
    return best


def score(expected: str, answer: str) -> Score:
    """Exact match after trimming; where boxes are expected, the share of them found at IoU ≥ 0.5.

    A box is found only under its own name: boxes are compared name by name, and extra ones find nothing. Of a list,
    which is right as a whole or not, its names are counted, too. A number may be said at once or aloud, `1, 2, 3`.
    """
    expected, answer = expected.strip(), answer.strip()
    if _is_aloud(answer, expected):
        answer = expected
    if "<|det|>" not in expected:
        return Score(float(expected == answer), names=match_names(expected, answer))
    truth, given = _by_name(expected), _by_name(answer)
    ious = [value for name, at in truth.items() for value in match_boxes(at, given.get(name, []))]
    return Score(sum(value >= IOU_FOUND for value in ious) / len(ious), tuple(ious))


def _is_aloud(answer: str, number: str) -> bool:
    """Whether it goes from 1 to this number, one at a time."""
    steps = _BETWEEN_NAMES.split(answer)
    return steps == [str(n) for n in range(1, len(steps) + 1)] and steps[-1] == number


def match_names(expected: str, answer: str) -> Names:
    """Of lists like `cat, dog` or `猫、狗`; anything else is a list of one. What is there twice must be said twice."""
    truth, given = (Counter(_BETWEEN_NAMES.split(text.strip())) for text in (expected, answer))
    return Names(truth.total(), given.total(), (truth & given).total())


ANLS_LEAST = 0.5
"""Less likeness than this counts as none."""


def anls(expected: str, answer: str) -> float:
    """Average normalised Levenshtein similarity of one answer with one truth (arXiv:1905.13648): 0-1, any case."""
    one, other = expected.strip().lower(), answer.strip().lower()
    longest = max(len(one), len(other))
    likeness = 1.0 - edit_distance(one, other) / longest if longest else 1.0
    return likeness if likeness >= ANLS_LEAST else 0.0


def edit_distance(one: str, other: str) -> int:
    """Insertions, deletions and exchanges of a character that make one text the other."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def mean(values: Iterable[float]) -> float:
    """The mean, or 0 of nothing."""
    items = list(values)
    return sum(items) / len(items) if items else 0.0


def _by_name(text: str) -> dict[str, list[Box]]:
    """Boxes under each referred name; boxes without a name are under the empty one."""
    out: dict[str, list[Box]] = {}
    pieces = _NAME.split(text)
    for name, rest in zip(["", *pieces[1::2]], pieces[0::2], strict=True):
        found = boxes(rest)
        if found:
            out.setdefault(name, []).extend(found)
    return out
