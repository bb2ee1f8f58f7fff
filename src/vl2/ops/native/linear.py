"""Linears of prompts and pictures by the library, on the matrix units of a processor that has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vl2.ops.linear import pack
from vl2.ops.native.matrices import describe_strips
from vl2.ops.native.prompts import Workers, workers
from vl2.ops.native.structures import Matrix


@dataclass(frozen=True, slots=True)
class NativeLinear:
    """A packed weight as the library reads it. A row's bits do not depend on how many rows there are."""

    workers: Workers
    matrix: Matrix
    kept: tuple[torch.Tensor | None, ...]  # what the matrix points to

    def multiply(self, x: torch.Tensor, is_gelu: bool = False) -> torch.Tensor:
        """x [..., In] → x Wᵀ + b [..., Out], or its gelu in the tanh form, rounded once."""
        rows = x.flatten(0, -2)
        return self.workers.linear(rows, self.matrix, is_gelu).view(*x.shape[:-1], -1)


def describe_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> NativeLinear | None:
    """weight [Out, In] packed for torch's number of threads, bias [Out]; None: torch multiplies with it."""
    own = workers(torch.get_num_threads())
    if own is None or not own.multiplies:
        return None
    floats = None if bias is None else bias.detach().float()
    matrix = describe_strips(weight, floats)
    return None if matrix is None else NativeLinear(own, matrix, (weight, floats))


def pack_linear(weight: torch.Tensor) -> NativeLinear | None:
    """A packed copy of a plain weight, for the library alone; None: it does not multiply here."""
    own = workers(torch.get_num_threads())
    return describe_linear(pack(weight), None) if own is not None and own.multiplies else None
