"""The last projection. Logits are float32: rounding them to bfloat16 would tie the best tokens with each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vl2.ops.wide_product import multiply

ROWS_AT_ONCE = 8192


def project_logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """hidden [L, C], weight [V, C] → [L, V] float32, accumulated in float32 and not rounded to the model's dtype.

    The weight is taken block by block, so no float32 copy of the whole matrix is ever held.
    """
    if weight.dtype == torch.float32:
        return F.linear(hidden, weight)
    if weight.is_cuda:
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    out = torch.empty(hidden.shape[0], weight.shape[0], dtype=torch.float32)
    for start in range(0, weight.shape[0], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        out[:, rows] = multiply(hidden, weight[rows].T)
    return out
