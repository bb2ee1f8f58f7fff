"""Host arrays → device tensors, all in one copy that nobody waits for."""

from __future__ import annotations

import numpy as np
import torch

ALIGNMENT = 8
"""Bytes: the largest element."""


def send(arrays: list[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Tensors of the same shapes and types on the device. On a CPU they share the arrays' memory."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    starts = np.cumsum([0] + [-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays])
    packed = torch.empty(int(starts[-1]), dtype=torch.uint8, pin_memory=True)
    view = packed.numpy()
    for start, array in zip(starts, arrays, strict=False):
        view[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    sent = packed.to(device, non_blocking=True)
    return [
        sent[start : start + array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
        for start, array in zip(starts, arrays, strict=False)
    ]


class StaticInputs:
    """Device tensors at fixed addresses, as a CUDA graph needs them, which one copy fills."""

    def __init__(self, examples: dict[str, np.ndarray], device: torch.device) -> None:
        """Types and shapes are those of the examples, and so are the values until the first `fill`."""
        self._starts, size = {}, 0
        for name, array in examples.items():
            self._starts[name] = size
            size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        self._device = torch.empty(size, dtype=torch.uint8, device=device)
        self.tensors = {
            name: self._device[self._starts[name] : self._starts[name] + array.nbytes]
            .view(torch.from_numpy(array[:0]).dtype)
            .view(array.shape)
            for name, array in examples.items()
        }
        self.fill(examples)

    def fill(self, arrays: dict[str, np.ndarray]) -> None:
        """Of all tensors, in their shapes and types."""
        packed = torch.empty(len(self._device), dtype=torch.uint8, pin_memory=self._device.is_cuda)
        view = packed.numpy()
        for name, array in arrays.items():
            start = self._starts[name]
            view[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        self._device.copy_(packed, non_blocking=True)
