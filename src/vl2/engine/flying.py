"""A step whose tokens are still being copied from a GPU."""

from __future__ import annotations

import torch

from vl2.engine.scheduler import Chunk, StepOutput


class FlyingStep:
    """Tokens being copied to the host behind the kernels that sample them; one event tells that they are there."""

    def __init__(self, tokens: torch.Tensor, began: torch.cuda.Event | None = None) -> None:
        """tokens [L] int64; on a CPU they are there at once. `began`: recorded before the step's first kernel."""
        self.late: list[Chunk] = []
        self.seconds: float | None = None
        self._began = began
        self._tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=tokens.is_cuda)
        self._tokens.copy_(tokens, non_blocking=True)
        self._copied = torch.cuda.Event(enable_timing=True) if tokens.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def result(self) -> StepOutput:
        if self._copied is not None:
            self._copied.synchronize()
            if self._began is not None:
                self.seconds = self._began.elapsed_time(self._copied) / 1000
        return StepOutput(self._tokens.tolist(), [None] * len(self._tokens))
