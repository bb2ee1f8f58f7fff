"""The weights of one MoE layer's experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from vl2.ops.native.matrices import ExpertMatrices

Matrices: TypeAlias = torch.Tensor | Sequence[torch.Tensor]
"""One matrix an expert: a tensor [E, Out, In], or packed ones (ops/linear.py), which the reference alone reads."""


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    gate_up: Matrices  # [E, 2F, C]: gate rows, then up rows
    down: Matrices  # [E, C, F]
    shared_gate_up: torch.Tensor | None  # [2Fs, C]: the shared experts as one, Fs wide; None: there are none
    shared_down: torch.Tensor | None  # [C, Fs]
    described: ExpertMatrices | None = None  # packed ones as the native library reads them; None: it does not
