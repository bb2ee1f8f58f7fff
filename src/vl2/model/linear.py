"""Building blocks without initial values: weights are always streamed in from a checkpoint."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vl2.ops.activation import gelu_tanh
from vl2.ops.backend import Backend
from vl2.ops.rows import pad_rows, round_up
from vl2.ops.saturate import saturate


def empty(*shape: int, dtype: torch.dtype, device: torch.device | str) -> nn.Parameter:
    """An uninitialised weight that takes no gradient."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device), requires_grad=False)


class Linear(nn.Module):
    """y = x Wᵀ + b; float16 results saturate. Row counts are rounded up to `row_multiple` (ops/rows.py)."""

    row_multiple = 1

    def __init__(
        self, in_width: int, out_width: int, *, bias: bool = False, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        self.weight = empty(out_width, in_width, dtype=dtype, device=device)
        self.bias = empty(out_width, dtype=dtype, device=device) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.row_multiple == 1:
            return saturate(F.linear(x, self.weight, self.bias))
        rows = x.flatten(0, -2)
        out = F.linear(pad_rows(rows, round_up(len(rows), self.row_multiple)), self.weight, self.bias)[: len(rows)]
        return saturate(out).view(*x.shape[:-1], -1)


class GeluLinear(Linear):
    """gelu(x Wᵀ + b), the tanh form."""

    def __init__(
        self, in_width: int, out_width: int, ops: Backend, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(in_width, out_width, bias=True, dtype=dtype, device=device)
        self.ops = ops

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.row_multiple == 1 and self.bias is not None:
            return self.ops.linear_gelu(x, self.weight, self.bias)
        return gelu_tanh(super().forward(x))


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float, ops: Backend, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.eps, self.ops = eps, ops
        self.weight = empty(width, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, delta: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(x + delta, normed); no delta is zero."""
        if delta is None:
            return x, self(x)
        return self.ops.add_rms_norm(x, delta, self.weight, self.eps)


class LayerNorm(nn.Module):
    """SigLIP's norm."""

    def __init__(self, width: int, ops: Backend, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.ops = ops
        self.weight = empty(width, dtype=dtype, device=device)
        self.bias = empty(width, dtype=dtype, device=device)

    def add(self, x: torch.Tensor, delta: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(x + delta, normed); no delta is zero."""
        return self.ops.add_layer_norm(x, delta, self.weight, self.bias)
