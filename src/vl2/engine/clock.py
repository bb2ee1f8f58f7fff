"""Where the time of one answer went, as the engine sees it."""

from __future__ import annotations

from dataclasses import dataclass

from vl2.core.types import Timing


@dataclass(slots=True)
class SequenceClock:
    """Times on the monotonic clock; None: not yet."""

    arrival_s: float
    begun_s: float | None = None  # the first step that computed for it
    first_token_s: float | None = None
    vision_s: float = 0.0  # its share of the vision tower's work

    def begin(self, now_s: float) -> None:
        if self.begun_s is None:
            self.begun_s = now_s

    def token(self, now_s: float) -> None:
        if self.first_token_s is None:
            self.first_token_s = now_s

    def timing(self, now_s: float) -> Timing:
        begun_s = self.arrival_s if self.begun_s is None else self.begun_s
        first_s = now_s if self.first_token_s is None else self.first_token_s
        return Timing(
            queue_s=begun_s - self.arrival_s,
            vision_s=self.vision_s,
            prefill_s=max(0.0, first_s - begun_s - self.vision_s),
            decode_s=now_s - first_s,
        )
