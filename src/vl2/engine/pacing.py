"""How much prompt work a step may hold while answers are running, so that their tokens keep coming.

A step that only decodes takes some time; prompt tokens and tiles make it longer. All costs are learned from the steps
as they run, and the budget is set so that a step takes at most `STALL_FACTOR` times the decoding alone.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

STALL_FACTOR = 1.7
MIN_PREFILL_TOKENS = 16
"""Prompts always move on, however slow they are."""
GPU_STEP_S = 0.085
"""On a GPU a step may take so long in any case: nobody who reads a stream sees it, and a short chunk of a prompt reads
nearly all experts' weights as a long one does.
"""
ONE_KIND_GPU_STEP_S = 2 * GPU_STEP_S
"""Of prompts between two steps of answers, where a step is of one kind: each pause of the prompts costs a step that
reads all weights for few answers. 256 requests of 1,024 tokens take 2.4 % less time than with `GPU_STEP_S` (Small,
deterministic, H100).
"""
LEARNING_RATE = 0.2


def unnoticed_step_s(is_gpu: bool, mixes: bool) -> float:
    """How long a step may take in any case. `mixes`: whether answers' tokens are in the same step as prompts."""
    return 0.0 if not is_gpu else GPU_STEP_S if mixes else ONE_KIND_GPU_STEP_S


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What one step held."""

    num_decodes: int
    num_prefill_tokens: int
    num_tiles: int


class Cost:
    """Seconds that so much work takes, known at one point of each octave that has been seen.

    Twice as much work takes at most twice as long, and often less: a step has costs that do not depend on its size.
    """

    def __init__(self) -> None:
        self._points: dict[int, tuple[float, float]] = {}  # by octave: (amount, seconds)

    def __bool__(self) -> bool:
        return bool(self._points)

    def learn(self, amount: int, seconds: float) -> None:
        octave = amount.bit_length()
        old_amount, old_seconds = self._points.get(octave, (amount, seconds))
        self._points[octave] = _blend(old_amount, amount), _blend(old_seconds, seconds)

    def seconds(self, amount: int) -> float:
        """In proportion to the nearest point."""
        if not self._points or not amount:
            return 0.0
        octave = min(self._points, key=lambda known: abs(known - amount.bit_length()))
        known, seconds = self._points[octave]
        return seconds * amount / known

    def affordable(self, seconds: float) -> int:
        """In proportion to the point that allows most; 0: nothing is known.

        That a step turned out slow once, while a kernel was compiled, then spoils nothing: other points allow more.
        """
        return max((int(amount * (seconds / taken)) for amount, taken in self._points.values()), default=0)


class Pacer:
    """Estimates in seconds, unknown until a step has shown them."""

    def __init__(
        self,
        max_prefill_tokens: int,
        max_tiles: int,
        *,
        unnoticed_step_s: float = 0.0,
        step_sizes: Sequence[int] = (),
        mixes: bool = True,
    ) -> None:
        """The maxima are for a step in which nothing decodes; they bound its memory.

        unnoticed_step_s  no step need be shorter
        step_sizes        numbers of tokens that a step is filled up to; a budget makes it fill one of them by itself
        mixes             whether answers' tokens are in the same step as prompts
        """
        self._mixes = mixes
        self._max_prefill_tokens, self._max_tiles = max_prefill_tokens, max_tiles
        self._min_prefill_tokens = min(MIN_PREFILL_TOKENS, max_prefill_tokens)
        self._unnoticed_step_s, self._step_sizes = unnoticed_step_s, sorted(step_sizes)
        self._decode_s: dict[int, float] = {}  # by the number of answers, in powers of two
        self._prefill, self._encoding = Cost(), Cost()

    def prefill_tokens(self, num_decodes: int) -> int:
        """Prompt tokens for the next step beside so many running answers."""
        if not num_decodes:
            return self._max_prefill_tokens
        if not self._decode_s or not self._prefill:
            return self._min_prefill_tokens
        beside = num_decodes if self._mixes else 0
        affordable = self._whole_step(self._prefill.affordable(self._spare_s(num_decodes)), beside)
        return max(min(affordable, self._max_prefill_tokens), self._min_prefill_tokens)

    def allows(self, before: int, more: int, num_decodes: int) -> bool:
        """Whether so many `more` prompt tokens may be computed after those `before`, while answers stand still."""
        if not before:
            return True
        if not self._decode_s or not self._prefill:
            return False
        return before + more <= self._prefill.affordable(self._spare_s(num_decodes))

    def tiles(self, num_decodes: int) -> int:
        """Tiles for the next step: beside running answers one, whose gap is then at most longer by that one, or what
        nobody notices.
        """
        if not num_decodes:
            return self._max_tiles
        if not self._unnoticed_step_s or not self._decode_s:
            return 1
        return max(1, min(self._encoding.affordable(self._spare_s(num_decodes)), self._max_tiles))

    def learn(self, load: StepLoad, seconds: float) -> None:
        """A step of one kind shows its cost; of a mixed one, what was known before is taken away."""
        tokens, size = load.num_prefill_tokens, load.num_decodes.bit_length()
        decode_s = self._decode_s.get(size, 0.0) if load.num_decodes else 0.0
        if load.num_tiles:
            own_s = seconds - decode_s - self._prefill.seconds(tokens)
            self._encoding.learn(load.num_tiles, max(own_s, 0.1 * seconds))
        elif not tokens:
            self._decode_s[size] = _blend(self._decode_s.get(size, seconds), seconds)
        elif load.num_decodes and size not in self._decode_s:
            self._decode_s[size] = max(seconds - self._prefill.seconds(tokens), 0.1 * seconds)
        elif tokens >= MIN_PREFILL_TOKENS:
            self._prefill.learn(tokens, max(seconds - decode_s, 0.1 * seconds))

    def _spare_s(self, num_decodes: int) -> float:
        nearest = min(self._decode_s, key=lambda size: abs(size - num_decodes.bit_length()))
        decode_s = self._decode_s[nearest]
        return max((STALL_FACTOR - 1) * decode_s, self._unnoticed_step_s - decode_s)

    def _whole_step(self, tokens: int, num_decodes: int) -> int:
        """Prompt tokens that fill the largest step size within reach."""
        fitting = bisect.bisect_right(self._step_sizes, tokens + num_decodes)
        return self._step_sizes[fitting - 1] - num_decodes if fitting else tokens


def _blend(old: float, new: float) -> float:
    return (1 - LEARNING_RATE) * old + LEARNING_RATE * new
