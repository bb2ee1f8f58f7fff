"""Building blocks without initial values: weights are always streamed in from a checkpoint."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import nn

from vl2.core.quantization import Quantization, WeightScheme
from vl2.ops.activation import gelu_tanh
from vl2.ops.backend import Backend, LinearOnto
from vl2.ops.experts.mixture import Mixture
from vl2.ops.linear import multiply
from vl2.ops.native.linear import NativeLinear
from vl2.ops.quantized_weight.weight import QuantizedWeight
from vl2.ops.rows import RowRounding, pad_rows, round_up
from vl2.ops.saturate import saturate


def empty(*shape: int, dtype: torch.dtype, device: torch.device | str) -> nn.Parameter:
    """An uninitialised weight that takes no gradient."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device), requires_grad=False)


class Linear(nn.Module):
    """y = x Wᵀ + b; float16 results saturate. Row counts are rounded up to `row_multiple` (ops/rows.py)."""

    row_multiple = 1
    multiply = staticmethod(multiply)  # or the backend's (model/vl2.py)
    multiply_onto: LinearOnto | None = None
    native: NativeLinear | None = None  # set when weights are packed (model/packing.py): it multiplies then

    def __init__(
        self, in_width: int, out_width: int, *, bias: bool = False, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        self.weight = empty(out_width, in_width, dtype=dtype, device=device)
        self.bias = empty(out_width, dtype=dtype, device=device) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.native is not None:
            return self.native.multiply(x)
        if self.row_multiple == 1:
            return saturate(self.multiply(x, self.weight, self.bias))
        rows = x.flatten(0, -2)
        out = self.multiply(pad_rows(rows, round_up(len(rows), self.row_multiple)), self.weight, self.bias)[: len(rows)]
        return saturate(out).view(*x.shape[:-1], -1)


class QuantizedLinear(nn.Module):
    """Linear with a weight in few bits, in the layout of the backend."""

    rounding = RowRounding()

    def __init__(
        self,
        in_width: int,
        out_width: int,
        scheme: WeightScheme,
        ops: Backend,
        *,
        bias: bool = False,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        self.ops, self.scheme, self.in_width = ops, scheme, in_width
        self.codes, self.scales = empty_quantized((out_width, in_width), scheme, ops, dtype=dtype, device=device)
        self.bias = empty(out_width, dtype=dtype, device=device) if bias else None

    @functools.cached_property
    def weight(self) -> QuantizedWeight:
        return QuantizedWeight(self.codes, self.scales, self.scheme, self.in_width)

    @property
    def num_weights(self) -> int:
        return self.codes.nbytes * 8 // self.scheme.bits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ops.quantized_linear(x, self.weight, self.bias, self.rounding)


def lie_together(first: Linear | QuantizedLinear, second: Linear | QuantizedLinear) -> None:
    """Give two linears of the same rows weights in one piece of memory, so that one product can compute both."""
    if isinstance(first, Linear) and isinstance(second, Linear):
        both = torch.cat((first.weight, second.weight))
        for linear, weight in zip((first, second), both.split((len(first.weight), len(second.weight))), strict=True):
            linear.weight = nn.Parameter(weight, requires_grad=False)


def is_plain(linear: Linear | QuantizedLinear) -> TypeGuard[Linear]:
    """Whether it is the product with a weight that lies there as it is, and no more. Who watches it must be told."""
    return is_product(linear) and linear.bias is None


def is_product(linear: Linear | QuantizedLinear) -> TypeGuard[Linear]:
    """`is_plain`, with a bias or without."""
    if type(linear) is not Linear or linear.native is not None or linear._forward_pre_hooks:
        return False
    return linear.row_multiple == 1 and not linear.weight.is_mkldnn


def add_product(
    linear: Linear | QuantizedLinear, residual: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(residual + y, None) where that is one product, which may overwrite residual; else (residual, y)."""
    if is_product(linear) and linear.multiply_onto is not None:
        total = linear.multiply_onto(residual, x, linear.weight, linear.bias)
        if total is not None:
            return total, None
    return residual, linear(x)


def is_plainly_quantized(linear: Linear | QuantizedLinear) -> TypeGuard[QuantizedLinear]:
    """`is_plain` of a weight in few bits."""
    return isinstance(linear, QuantizedLinear) and linear.bias is None and not linear._forward_pre_hooks


def empty_quantized(
    shape: tuple[int, ...], scheme: WeightScheme, ops: Backend, *, dtype: torch.dtype, device: torch.device | str
) -> tuple[nn.Parameter, nn.Parameter]:
    """Uninitialised codes and scales."""
    codes, scales = ops.quantized_layout.empty(shape, scheme, dtype, device)
    return nn.Parameter(codes, requires_grad=False), nn.Parameter(scales, requires_grad=False)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the checkpoint a module's linears lie, to find what they are quantised to."""

    quantization: Quantization | None = None
    prefix: str = ""

    def at(self, name: str) -> Place:
        return Place(self.quantization, f"{self.prefix}.{name}" if self.prefix else name)

    def scheme(self, names: Iterable[str], ops: Backend, out_width: int, in_width: int) -> WeightScheme | None:
        """Of linears that are computed together; None: 16 bits, as their schemes differ or the backend has none such.

        out_width  a divisor of that of each
        """
        if self.quantization is None:
            return None
        found = {self.quantization.scheme_of(f"{self.prefix}.{name}") for name in names}
        scheme = found.pop() if len(found) == 1 else None
        return scheme if scheme is not None and ops.quantized_layout.holds(scheme, out_width, in_width) else None

    def linear(
        self,
        in_width: int,
        parts: Mapping[str, int],
        ops: Backend,
        *,
        bias: bool = False,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> Linear | QuantizedLinear:
        """One linear of those in the checkpoint, {name: output width}, stacked along the output."""
        out_width = sum(parts.values())
        scheme = self.scheme(parts, ops, math.gcd(*parts.values()), in_width)
        if scheme is None:
            return Linear(in_width, out_width, bias=bias, dtype=dtype, device=device)
        return QuantizedLinear(in_width, out_width, scheme, ops, bias=bias, dtype=dtype, device=device)


class GeluLinear(Linear):
    """gelu(x Wᵀ + b), the tanh form."""

    def __init__(
        self, in_width: int, out_width: int, ops: Backend, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(in_width, out_width, bias=True, dtype=dtype, device=device)
        self.ops = ops

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.native is not None:
            return self.native.multiply(x, is_gelu=True)
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

    def add(self, x: torch.Tensor, delta: torch.Tensor | Mixture | None) -> tuple[torch.Tensor, torch.Tensor]:
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
