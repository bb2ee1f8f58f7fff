"""Steps whose results may still be on their way from the device."""

from __future__ import annotations

from typing import Protocol

import torch

from vl2.engine.scheduler import Chunk, StepOutput


class PendingStep(Protocol):
    @property
    def late(self) -> list[Chunk]:
        """Chunks whose token was not sampled this time: its grammar was not ready."""
        ...

    def result(self) -> StepOutput:
        """Waits for the device."""
        ...


class FinishedStep:
    """A step whose result is there."""

    def __init__(self, output: StepOutput, late: list[Chunk] | None = None) -> None:
        self.output, self.late = output, late or []

    def result(self) -> StepOutput:
        return self.output


class FlyingStep:
    """Tokens being copied to the host behind the kernels that sample them; one event tells that they are there."""

    def __init__(self, tokens: torch.Tensor) -> None:
        """tokens [L] int64; on a CPU they are there at once."""
        self.late: list[Chunk] = []
        self._tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=tokens.is_cuda)
        self._tokens.copy_(tokens, non_blocking=True)
        self._copied = torch.cuda.Event() if tokens.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def result(self) -> StepOutput:
        if self._copied is not None:
            self._copied.synchronize()
        return StepOutput(self._tokens.tolist(), [None] * len(self._tokens))
