"""Pixels as the rows of a matrix, so that the patch embedding is a plain product."""

from __future__ import annotations

import torch

from vl2.ops.saturate import to_dtype

PIXEL_MEAN = PIXEL_STD = 0.5
"""Of every published processor_config.json; the processor refuses others."""


def cut_patches(tiles: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
    """`Backend.cut_patches` (ops/backend.py)."""
    grid = tiles.shape[1] // size
    return (
        normalise(tiles[:, : grid * size, : grid * size], dtype)
        .unflatten(2, (grid, size))
        .unflatten(1, (grid, size))
        .permute(0, 1, 3, 5, 2, 4)
        .flatten(3)
        .flatten(1, 2)
    )


def normalise(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 → dtype, -1 to 1."""
    return to_dtype((pixels.float() / 255.0 - PIXEL_MEAN) / PIXEL_STD, dtype)
