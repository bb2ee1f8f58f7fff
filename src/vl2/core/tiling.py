"""Picture size → tile grid → number and order of tokens. The one place of this arithmetic.

Source: `select_best_resolution` and `tokenize_with_images` of the official `processing_deepseek_vl_v2.py`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

MAX_TILED_IMAGES = 2
"""A conversation with more pictures than this is not tiled: each picture has one local tile."""

NEWLINE_ROW = -1
SEPARATOR_ROW = -2


@dataclass(frozen=True, slots=True)
class TileGeometry:
    """The constants of a checkpoint that decide how pictures become tokens."""

    side: int  # pixels of a tile's side
    patch_size: int
    downsample_ratio: int
    candidates: tuple[tuple[int, int], ...]  # (width, height) in pixels, order matters
    is_global_first: bool = True

    @property
    def grid(self) -> int:
        """Tokens along one side of a tile."""
        return math.ceil((self.side // self.patch_size) / self.downsample_ratio)

    @property
    def tokens_per_tile(self) -> int:
        return self.grid * self.grid


def best_resolution(width: int, height: int, candidates: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The candidate that keeps most of the picture's pixels; on a tie the one that wastes least; else the earlier."""
    best, best_effective, best_waste = candidates[0], -1, 0
    for cand_width, cand_height in candidates:
        scale = min(cand_width / width, cand_height / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        waste = cand_width * cand_height - effective
        if effective > best_effective or (effective == best_effective and waste < best_waste):
            best, best_effective, best_waste = (cand_width, cand_height), effective, waste
    return best


def tile_grid(width: int, height: int, num_images: int, geometry: TileGeometry) -> tuple[int, int]:
    """(tiles across, tiles down) of the local view of a picture in a conversation with `num_images` pictures."""
    if num_images > MAX_TILED_IMAGES:
        return 1, 1
    best_width, best_height = best_resolution(width, height, geometry.candidates)
    return best_width // geometry.side, best_height // geometry.side


def num_image_tokens(tiles_wide: int, tiles_high: int, geometry: TileGeometry) -> int:
    """Length of a picture's span: global view, one separator, local view; each row of either ends in a newline."""
    n = geometry.grid
    return n * (n + 1) + 1 + tiles_high * n * (tiles_wide * n + 1)


@functools.lru_cache(maxsize=64)
def image_layout(tiles_wide: int, tiles_high: int, geometry: TileGeometry) -> np.ndarray:
    """Which feature row each token of a picture's span takes.

    Returns: int64 [num_image_tokens]; `tile * tokens_per_tile + row * grid + column` with tile 0 the global view and
    tiles 1… the local ones row by row; NEWLINE_ROW and SEPARATOR_ROW stand for the two learned vectors.
    """
    n, per_tile = geometry.grid, geometry.tokens_per_tile
    tile_rows = np.arange(per_tile, dtype=np.int64).reshape(n, n)
    local = np.block(
        [
            [(1 + down * tiles_wide + across) * per_tile + tile_rows for across in range(tiles_wide)]
            for down in range(tiles_high)
        ]
    )
    views = [np.pad(view, ((0, 0), (0, 1)), constant_values=NEWLINE_ROW).ravel() for view in (tile_rows, local)]
    if not geometry.is_global_first:
        views.reverse()
    layout = np.concatenate([views[0], [SEPARATOR_ROW], views[1]])
    layout.flags.writeable = False  # shared by all callers: every chunk of a picture asks for it
    return layout
