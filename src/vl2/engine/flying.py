"""A step whose tokens are still being copied from a GPU."""

from __future__ import annotations

import torch

from vl2.engine.scheduler import Chunk, StepOutput


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
