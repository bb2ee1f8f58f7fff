"""The weights of one MoE layer's experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    gate_up: torch.Tensor  # [E, 2F, C]: gate rows, then up rows
    down: torch.Tensor  # [E, C, F]
    shared_gate_up: torch.Tensor | None  # [2Fs, C]: the shared experts as one, Fs wide; None: there are none
    shared_down: torch.Tensor | None  # [C, Fs]
