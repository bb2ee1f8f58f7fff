"""Rows of activations in float8 (e4m3), each with a scale of its own."""

from __future__ import annotations

import torch

from vl2.ops.saturate import FLOAT8, FLOAT8_MAX, to_dtype

SMALLEST = 1e-10
"""Largest number of a row, at least: rows of zeros have a scale too."""


def round_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K] any float → (codes [M, K] float8, scales [M] float32): a row's largest number is float8's largest."""
    scales = x.float().abs().amax(-1).clamp(min=SMALLEST) / FLOAT8_MAX
    return to_dtype(x.float() / scales.unsqueeze(-1), FLOAT8), scales
