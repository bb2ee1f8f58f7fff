"""Non-linear functions whose bits do not depend on where an element lies in its tensor.

On a CPU, torch computes full vectors with one approximation of exp and tanh and the few elements after the last full
vector of a thread's share with another. Here every share is made of full vectors, by appending zeros where needed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from vl2.ops.linear import multiply, multiply_gelu
from vl2.ops.rows import round_up
from vl2.ops.saturate import saturate

LANES = 32
"""Elements of the widest vector: 64 bytes of bfloat16."""
GRAIN = 32768
"""Elements that torch gives a thread at least (at::internal::GRAIN_SIZE)."""
GELU_GRAIN = 16384
"""Its gelu shares smaller tensors than that, from here on."""


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """The vision tower's GELU."""
    return _in_full_vectors(lambda values: F.gelu(values, approximate="tanh"), x, GELU_GRAIN)


def linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`Backend.linear_gelu` (ops/backend.py)."""
    return multiply_gelu(x, weight, bias) if weight.is_mkldnn else gelu_tanh(saturate(multiply(x, weight, bias)))


def gelu_erf(x: torch.Tensor) -> torch.Tensor:
    """The projector's GELU."""
    return _in_full_vectors(F.gelu, x, GELU_GRAIN)


def silu(x: torch.Tensor) -> torch.Tensor:
    return _in_full_vectors(F.silu, x, GRAIN)


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return _in_full_vectors(torch.sigmoid, x, GRAIN)


def _in_full_vectors(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, grain: int) -> torch.Tensor:
    if x.is_cuda:
        return function(x)
    size = padded = x.numel()
    while padded % (LANES * _num_shares(padded, grain)):
        padded = round_up(padded + 1, LANES)
    if padded == size:
        return function(x.contiguous())
    return function(F.pad(x.flatten(), (0, padded - size)))[:size].view(x.shape)


def _num_shares(size: int, grain: int) -> int:
    """Threads among which torch divides `size` elements."""
    threads = torch.get_num_threads()
    is_shared_early = grain < GRAIN and grain < size < GRAIN * threads
    return threads if is_shared_early else min(threads, -(-size // GRAIN))
