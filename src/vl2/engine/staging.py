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
