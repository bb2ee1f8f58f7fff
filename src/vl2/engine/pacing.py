"""How much prompt work a step may hold while answers are running, so that their tokens keep coming.

A step that only decodes takes some time; prompt tokens and tiles make it longer. Both costs are learned from the steps
as they run, and the budget is set so that a step takes at most `STALL_FACTOR` times the decoding alone.
"""

from __future__ import annotations

from dataclasses import dataclass

STALL_FACTOR = 1.7
MIN_PREFILL_TOKENS = 16
"""Prompts always move on, however slow they are."""
GPU_STEP_S = 0.02
"""On a GPU a step may take so long in any case: nobody who reads a stream sees it, and a short chunk of a prompt reads
nearly all experts' weights as a long one does.
"""
LEARNING_RATE = 0.2


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What one step held."""

    num_decodes: int
    num_prefill_tokens: int
    num_tiles: int


class Pacer:
    """Estimates in seconds, unknown until a step has shown them."""

    def __init__(
        self,
        max_prefill_tokens: int,
        max_tiles: int,
        *,
        unnoticed_step_s: float = 0.0,
    ) -> None:
        """The maxima are for a step in which nothing decodes; they bound its memory. No step need be shorter than
        `unnoticed_step_s`.
        """
        self._max_prefill_tokens, self._max_tiles = max_prefill_tokens, max_tiles
        self._min_prefill_tokens = min(MIN_PREFILL_TOKENS, max_prefill_tokens)
        self._unnoticed_step_s = unnoticed_step_s
        self._decode_s: dict[int, float] = {}  # by the number of answers, in powers of two
        self._prefill_token_s: float | None = None

    def prefill_tokens(self, num_decodes: int) -> int:
        """Prompt tokens for the next step beside so many running answers."""
        if not num_decodes:
            return self._max_prefill_tokens
        if not self._decode_s or self._prefill_token_s is None:
            return self._min_prefill_tokens
        nearest = min(self._decode_s, key=lambda size: abs(size - num_decodes.bit_length()))
        decode_s = self._decode_s[nearest]
        spare_s = max((STALL_FACTOR - 1) * decode_s, self._unnoticed_step_s - decode_s)
        affordable = int(spare_s / self._prefill_token_s)
        return max(min(affordable, self._max_prefill_tokens), self._min_prefill_tokens)

    def tiles(self, num_decodes: int) -> int:
        """Tiles for the next step: one beside running answers, whose gap is then at most longer by that one."""
        return 1 if num_decodes else self._max_tiles

    def learn(self, load: StepLoad, seconds: float) -> None:
        """A step of one kind shows its cost; of a mixed one, what was known before is taken away."""
        tokens, size = load.num_prefill_tokens, load.num_decodes.bit_length()
        if load.num_tiles:
            return
        if not tokens:
            self._decode_s[size] = _blend(self._decode_s.get(size), seconds)
        elif load.num_decodes and size not in self._decode_s:
            prefill_s = tokens * (self._prefill_token_s or 0.0)
            self._decode_s[size] = max(seconds - prefill_s, 0.1 * seconds)
        elif tokens >= MIN_PREFILL_TOKENS:
            decode_s = self._decode_s[size] if load.num_decodes else 0.0
            own_s = max(seconds - decode_s, 0.1 * seconds)
            self._prefill_token_s = _blend(self._prefill_token_s, own_s / tokens)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else (1 - LEARNING_RATE) * old + LEARNING_RATE * new
