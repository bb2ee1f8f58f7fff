"""Which devices compute with float8 (e4m3)."""

from __future__ import annotations

import functools

import torch

CAPABILITY = (8, 9)
"""Of GPUs whose tensor cores multiply it and that convert to and from it: Ada, Hopper and later."""


@functools.cache
def has_float8(device: torch.device) -> bool:
    """Whether the kernels may be given float8. Where there is no GPU they run in an interpreter, which may."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= CAPABILITY
