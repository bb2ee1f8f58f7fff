"""How much prompt work a step may hold while answers are running, so that their tokens keep coming.

A step that only decodes takes some time; prompt tokens and tiles make it longer. Both costs are learned from the steps
as they run, and the budget is set so that a step takes at most `STALL_FACTOR` times the decoding alone.
"""

from __future__ import annotations

from dataclasses import dataclass

STALL_FACTOR = 1.7
MIN_PREFILL_TOKENS = 16
"""Prompts always move on, however slow they are."""
LEARNING_RATE = 0.2


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What one step held."""

    num_decodes: int
    num_prefill_tokens: int
    num_tiles: int


class Pacer:
    """Estimates in seconds; None until a step has shown them."""

    def __init__(self, max_prefill_tokens: int, max_tiles: int) -> None:
        """The limits of a step in which nothing decodes; they bound its memory."""
        self._max_prefill_tokens, self._max_tiles = max_prefill_tokens, max_tiles
        self._min_prefill_tokens = min(MIN_PREFILL_TOKENS, max_prefill_tokens)
        self._decode_s: float | None = None
        self._prefill_token_s: float | None = None

    def prefill_tokens(self, num_decodes: int) -> int:
        """Prompt tokens for the next step beside so many running answers."""
        if not num_decodes:
            return self._max_prefill_tokens
        if self._decode_s is None or self._prefill_token_s is None:
            return self._min_prefill_tokens
        affordable = int((STALL_FACTOR - 1) * self._decode_s / self._prefill_token_s)
        return max(min(affordable, self._max_prefill_tokens), self._min_prefill_tokens)

    def tiles(self, num_decodes: int) -> int:
        """Tiles for the next step: one beside running answers, whose gap is then at most longer by that one."""
        return 1 if num_decodes else self._max_tiles

    def learn(self, load: StepLoad, seconds: float) -> None:
        if load.num_tiles:
            return
        if load.num_decodes and not load.num_prefill_tokens:
            self._decode_s = _blend(self._decode_s, seconds)
        elif load.num_prefill_tokens >= MIN_PREFILL_TOKENS:
            decode_s = (self._decode_s or 0.0) if load.num_decodes else 0.0
            self._prefill_token_s = _blend(
                self._prefill_token_s, max(seconds - decode_s, 0.1 * seconds) / load.num_prefill_tokens
            )


def _blend(old: float | None, new: float) -> float:
    return new if old is None else (1 - LEARNING_RATE) * old + LEARNING_RATE * new
