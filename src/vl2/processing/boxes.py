"""The inside of `<|det|>…<|/det|>` as an automaton over characters, with the shortest way out of each state.

    boxes    [[x1, y1, x2, y2], [x1, y1, x2, y2], …]     at least one, with exactly these spaces
    numbers  0…999 without leading zeros, x1 < x2, y1 < y2

`x1 < x2` asks to remember x1, so a state holds the numbers of the box that is being written. No state is a dead end:
the first two numbers are at most 998, and a digit is only taken where a number in range begins so.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from vl2.processing.grounding import COORDINATE_MAX

PUNCTUATION = "[], "
DIGITS = "0123456789"
NOT_POSSIBLE = -1


@dataclass(frozen=True, slots=True)
class Boxes:
    """`expected` must come next. Then the digits go on, or, with four numbers, a box has just been closed."""

    expected: str = "[["
    numbers: tuple[int, ...] = ()  # finished ones of this box
    digits: str = ""  # of the next one

    @property
    def is_at_number(self) -> bool:
        return not self.expected and len(self.numbers) < 4

    @property
    def limits(self) -> tuple[int, int]:
        """Lowest and highest value of the number that is being written."""
        idx = len(self.numbers)
        return (0, COORDINATE_MAX - 1) if idx < 2 else (self.numbers[idx - 2] + 1, COORDINATE_MAX)


@dataclass(frozen=True, slots=True)
class BoxesWritten:
    """After the last `]`: the block can only end."""


def step(state: Boxes, character: str) -> Boxes | BoxesWritten | None:
    """None: the character is not allowed here."""
    numbers, digits = state.numbers, state.digits
    if state.expected:
        return Boxes(state.expected[1:], numbers) if character == state.expected[0] else None
    if len(numbers) == 4:
        return Boxes(" [") if character == "," else BoxesWritten() if character == "]" else None
    low, high = state.limits
    if character in DIGITS:
        value = int(digits + character)
        is_number = digits != "0" and value <= COORDINATE_MAX and completions(low, high)[0][value] != NOT_POSSIBLE
        return Boxes("", numbers, digits + character) if is_number else None
    if not digits or int(digits) < low:
        return None
    numbers = (*numbers, int(digits))
    if len(numbers) < 4:
        return Boxes(" ", numbers) if character == "," else None
    return Boxes("", numbers) if character == "]" else None


def walk(state: Boxes, text: str) -> Boxes | BoxesWritten | None:
    """`step` for each character; None when one of them is not allowed."""
    current: Boxes | BoxesWritten | None = state
    for character in text:
        if not isinstance(current, Boxes):
            return None
        current = step(current, character)
    return current


def length_to_end(state: Boxes | BoxesWritten) -> int:
    """Characters of the shortest text from here to the last `]`."""
    if isinstance(state, BoxesWritten):
        return 0
    if len(state.numbers) == 4:
        return 1
    low, high = state.limits
    num_more, value = num_digits(low), low
    if state.digits:
        extra, values = completions(low, high)
        num_more, value = extra[int(state.digits)], values[int(state.digits)]
    return int(len(state.expected) + num_more + length_after([*state.numbers, value]))


def length_after(numbers: list[Any]) -> Any:
    """The same from behind the last of `numbers` on. Each of them is an int or an array of ints."""
    length: Any = 2  # "]]"
    while len(numbers) < 4:
        smallest = numbers[-2] + 1 if len(numbers) >= 2 else 0
        length = length + 2 + num_digits(smallest)  # ", " and the number
        numbers = [*numbers, smallest]
    return length


def num_digits(value: Any) -> Any:
    return 1 + (value > 9) + (value > 99)


@functools.lru_cache(maxsize=1024)
def completions(low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """For each 0…999 as the beginning of a number: digits that it lacks to be one in low … high, and which it is then.

    extra   [1000] int16  fewest digits, NOT_POSSIBLE where no number in range begins so
    values  [1000] int16  the smallest of the numbers with so many digits more
    """
    beginnings = np.arange(COORDINATE_MAX + 1)
    extra, values = np.full(len(beginnings), NOT_POSSIBLE, np.int16), np.zeros(len(beginnings), np.int16)
    for num_more in (2, 1, 0):  # the shortest one is written last
        first = beginnings * 10**num_more
        last = first + 10**num_more - 1
        fits = (first <= high) & (last >= low) & ((beginnings > 0) | (num_more == 0))
        extra[fits], values[fits] = num_more, np.maximum(first, low)[fits]
    return extra, values
