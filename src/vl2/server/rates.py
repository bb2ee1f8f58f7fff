"""How fast answers have been of late: what an estimate goes by."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

NUM_RECENT = 200


@dataclass(frozen=True, slots=True)
class Pace:
    """One finished answer."""

    computed_tokens: int  # of the prompt, cached ones left out
    first_token_s: float  # since its arrival: queue, pictures and prompt
    decoded_tokens: int  # behind the first one
    decode_s: float


class Rates:
    def __init__(self) -> None:
        self._recent: deque[Pace] = deque(maxlen=NUM_RECENT)

    def observe(self, pace: Pace) -> None:
        self._recent.append(pace)

    def newest(self, most: int) -> list[Pace]:
        """In the order of their ends."""
        return list(self._recent)[-most:]

    @property
    def num_answers(self) -> int:
        return len(self._recent)

    def first_token_s(self, num_tokens: int) -> float | None:
        """None before anything was answered."""
        total = sum(pace.computed_tokens for pace in self._recent)
        return None if not total else num_tokens * sum(pace.first_token_s for pace in self._recent) / total

    def decode_s(self, num_tokens: int) -> float | None:
        total = sum(pace.decoded_tokens for pace in self._recent)
        return None if not total else num_tokens * sum(pace.decode_s for pace in self._recent) / total
