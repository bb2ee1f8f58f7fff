"""Root-mean-square norm (arXiv:1910.07467) of the decoder, layer norm (arXiv:1607.06450) of the vision tower."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vl2.ops.experts.mixture import Mixture, add_up
from vl2.ops.saturate import to_dtype


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`Backend.rms_norm` (ops/backend.py)."""
    if x.dtype != weight.dtype or weight.dtype == torch.float16:
        return to_dtype(rms_norm(x.float(), weight.float(), eps), weight.dtype)
    # The layer norm of (x, -x), whose mean is 0. Torch has one kernel for that, in float32 inside, but none for this.
    shape = (2, len(weight))
    both = F.layer_norm(torch.stack((x, -x), dim=-2), shape, weight.expand(shape), eps=eps)
    return both[..., 0, :].contiguous()


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor | Mixture, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.add_rms_norm` (ops/backend.py)."""
    x = x + add_up(delta)
    return x, rms_norm(x, weight, eps)


LAYER_NORM_EPS = 1e-6


def add_layer_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.add_layer_norm` (ops/backend.py)."""
    x = x if delta is None else x + delta
    normed = F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps=LAYER_NORM_EPS)
    return x, to_dtype(normed, weight.dtype)
