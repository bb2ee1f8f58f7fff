"""Linears of prompts and pictures by the library, on the matrix units of a processor that has them. A decoding step
reads the same matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from vl2.ops.linear import pack
from vl2.ops.native.matrices import STRIP, describe_strips, lay_in_blocks, with_bias
from vl2.ops.native.prompts import present_workers, workers
from vl2.ops.native.short import Shortener
from vl2.ops.native.structures import Matrix


@dataclass(frozen=True, slots=True)
class NativeLinear:
    """A packed weight as the library reads it. A row's bits do not depend on how many rows there are."""

    matrix: Matrix
    kept: tuple[torch.Tensor, torch.Tensor | None]  # what the matrix points to: weight and bias

    def multiply(self, x: torch.Tensor, is_gelu: bool = False) -> torch.Tensor:
        """x [..., In] → x Wᵀ + b [..., Out], or its gelu in the tanh form, rounded once."""
        missing = -x.shape[-1] % STRIP
        rows = (F.pad(x, (0, missing)) if missing else x).flatten(0, -2)  # it copies in any case
        return present_workers().linear(rows, self.matrix, is_gelu).view(*x.shape[:-1], self.matrix.out_width)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, In] → x Wᵀ + b [T, Out] float32."""
        return present_workers().project(x, self.matrix)


def describe_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> NativeLinear | None:
    """weight [Out, In] packed for torch's number of threads, bias [Out]; None: torch multiplies with it."""
    if not multiplies():
        return None
    floats = _floats(bias)
    matrix = describe_strips(weight, floats, are_rows_filled=True)
    return None if matrix is None else NativeLinear(matrix, (weight, floats))


def shorten_linear(weight: torch.Tensor, bias: torch.Tensor | None, shortener: Shortener) -> NativeLinear | None:
    """As `describe_linear`, in 12 bits: the weight itself is not kept. None: it is not known, or stays as it is."""
    short = shortener.shorten(weight) if multiplies() else None
    if short is None:
        return None
    floats = _floats(bias)
    return NativeLinear(with_bias(short[0], floats), (short[1], floats))


def pack_plain(weight: torch.Tensor, shortener: Shortener | None) -> NativeLinear | None:
    """A copy of a plain weight for the library alone, in 12 bits if a shortener is given and can; None: not here."""
    laid = lay_in_blocks(weight) if multiplies() else None
    if laid is None:
        return None
    matrix, kept = (None if shortener is None else shortener.shorten_blocks(*laid)) or laid
    return NativeLinear(matrix, (kept, None))


def pack_linear(weight: torch.Tensor) -> NativeLinear | None:
    """A packed copy of a plain weight, for the library alone; None: it does not multiply here."""
    return describe_linear(pack(weight), None) if multiplies() else None


def _floats(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.detach().float()


def multiplies() -> bool:
    """Whether the library multiplies prompts with linears here: on matrix units."""
    own = workers(torch.get_num_threads())
    return own is not None and own.multiplies
