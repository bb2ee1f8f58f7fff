"""The vision tower's attention: each patch sees all patches of its tile. A tile's bits do not depend on the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vl2.ops.native.prompts import attention_workers
from vl2.ops.saturate import saturate


def attend_tiles(qkv: torch.Tensor) -> torch.Tensor:
    """qkv [N, patches, 3, H, D]: queries, keys, values → [N, patches, H, D], scaled by D^-0.5."""
    workers = attention_workers(qkv)
    if workers is None:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return saturate(F.scaled_dot_product_attention(q, k, v)).transpose(1, 2)
    scale = qkv.shape[-1] ** -0.5
    tiles = zip(*qkv.unbind(2), strict=True)
    return torch.stack([workers.attend(q, k, v, scale, is_causal=False) for q, k, v in tiles])
