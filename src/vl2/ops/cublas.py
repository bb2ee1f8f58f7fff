"""cuBLAS's products that do more on the accumulators, before they are rounded and written: they begin with a residual,
and end with a bias and the GELU. Those of the few shapes of the vision tower go by the algorithm that is fastest here.
"""

from __future__ import annotations

import functools
import logging

import torch

from vl2.ops import activation
from vl2.ops.cublas_choice import Choices, choices_path
from vl2.ops.cublas_lt import CublasLt, CublasLtError, Epilogue, Product
from vl2.ops.linear import multiply

log = logging.getLogger(__name__)

ONTO_ROWS = 512
"""From here on a product that begins with the residual saves more, in the norm after it, than it costs."""


def linear_onto(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor | None:
    """`Backend.linear_onto` (ops/backend.py): into residual itself, as another result would begin as a copy of it."""
    is_plain = bias is None and all(tensor.dtype == torch.bfloat16 for tensor in (residual, x, weight))
    return residual.addmm_(x, weight.T) if is_plain and x.is_cuda and len(x) >= ONTO_ROWS else None


def tower_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`Backend.tower_linear` (ops/backend.py)."""
    out = None if bias is None else _by_choice(x, weight, bias, Epilogue.BIAS)
    return multiply(x, weight, bias) if out is None else out


def tower_linear_onto(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor | None:
    """`Backend.tower_linear_onto` (ops/backend.py)."""
    return None if bias is None else _by_choice(x, weight, bias, Epilogue.BIAS, residual)


def linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`Backend.linear_gelu` (ops/backend.py). float16 must saturate between the two, and goes the plain way."""
    if weight.dtype != torch.bfloat16:
        return activation.linear_gelu(x, weight, bias)
    out = _by_choice(x, weight, bias, Epilogue.GELU_BIAS)
    if out is not None:
        return out
    rows = x.flatten(0, -2)
    return torch._addmm_activation(bias, rows, weight.T, use_gelu=True).view(*x.shape[:-1], -1)


def _by_choice(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epilogue: Epilogue, added: torch.Tensor | None = None
) -> torch.Tensor | None:
    """None: torch must multiply."""
    more = () if added is None else (added,)
    if not x.is_cuda or any(tensor.dtype != torch.bfloat16 for tensor in (x, weight, bias, *more)):
        return None
    choices = choices_of(x.device)
    if choices is None:
        return None
    rows = x.flatten(0, -2).contiguous()
    out = rows.new_empty(len(rows), len(weight))
    if not CublasLt.takes(rows, weight, bias, out, *more):
        return None
    product, run = Product(len(rows), len(weight), rows.shape[1], epilogue, bool(more)), choices.cublas_lt.run
    is_done = choices.run(product, lambda algorithm: run(product, algorithm, rows, weight, bias, out, added))
    return out.view(*x.shape[:-1], -1) if is_done else None


@functools.cache
def choices_of(device: torch.device) -> Choices | None:
    """None: without the library, torch multiplies; the log says so once."""
    try:
        return Choices(CublasLt(device), choices_path(torch.cuda.get_device_name(device)))
    except CublasLtError as error:
        log.warning("the vision tower's products have torch's algorithms: %s", error)
        return None
