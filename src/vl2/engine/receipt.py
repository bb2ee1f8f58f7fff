"""The reproducibility receipt: a name for all that the bits of an answer depend on beside request and seed.

Responses carry it as `system_fingerprint`. Two answers to the same request with the same seed and the same receipt are
equal to the last bit where the mode is deterministic (the receipt then begins with "vl2-d-"); under different receipts
they may differ, and the receipt is the first thing to compare.
"""

from __future__ import annotations

import hashlib

import torch

from vl2 import __version__


def system_fingerprint(
    weights: bytes, device: torch.device, dtype: torch.dtype, kernels: str, row_multiple: int, is_deterministic: bool
) -> str:
    """Hash of weights, versions of vl2 and torch, device and instruction set, number format, and the kernels in use."""
    if device.type == "cuda":
        hardware = (
            f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)} {torch.version.cuda}"
        )
    else:
        hardware = f"cpu {torch.backends.cpu.get_cpu_capability()}"
    parts = (weights.hex(), __version__, torch.__version__, hardware, str(dtype), kernels, f"rows of {row_multiple}")
    digest = hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
    return f"vl2-{'d-' if is_deterministic else ''}{digest}"
