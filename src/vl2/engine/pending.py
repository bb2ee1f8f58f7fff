"""Steps whose results may still be on their way from the device. No torch here; `flying.py` waits for a GPU."""

from __future__ import annotations

from typing import Protocol

from vl2.engine.scheduler import Chunk, StepOutput


class PendingStep(Protocol):
    @property
    def late(self) -> list[Chunk]:
        """Chunks whose token was not sampled this time: its grammar was not ready."""
        ...

    @property
    def seconds(self) -> float | None:
        """What the device took, once `result` has returned; None: it has no clock of its own."""
        ...

    def result(self) -> StepOutput:
        """Waits for the device."""
        ...


class FinishedStep:
    """A step whose result is there."""

    def __init__(self, output: StepOutput, late: list[Chunk] | None = None) -> None:
        self.output, self.late = output, late or []
        self.seconds: float | None = None

    def result(self) -> StepOutput:
        return self.output
