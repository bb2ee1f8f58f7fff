"""Pictures to tiles, tiles to token places: the official tiling, written for fast batch making.

`best_grid` chooses the tile grid, `tiles_of` cuts a picture, `Layout` says where each token of a row comes from.
A view maps picture pixels to tile pixels by one scale and one offset; the training labels need that map, so each tile
carries it (`TileMap`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from PIL import Image

from vl2.processing.resample import Scaler

TILE, SIDE = 384, 14  # tile size in pixels; tokens a tile side after the projector (ceil(27 / 2))
#: (across, down) in the official order; the order decides ties.
GRIDS = (
    (1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (4, 1), (2, 2), (1, 5), (5, 1), (1, 6), (6, 1), (2, 3), (3, 2),
    (1, 7), (7, 1), (1, 8), (8, 1), (2, 4), (4, 2), (1, 9), (9, 1), (3, 3),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TileMap:
    """tile pixel = picture pixel × scale + offset, with this tile's corner taken off."""

    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float


@lru_cache(4096)
def best_grid(width: int, height: int) -> tuple[int, int]:
    """The grid that keeps most of the picture's pixels; on a tie the one that wastes less, then the earlier."""
    best, best_key = GRIDS[0], (-1, 0)
    for across, down in GRIDS:
        w, h = across * TILE, down * TILE
        scale = min(w / width, h / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        key = (kept, -(w * h - kept))
        if key > best_key:
            best, best_key = (across, down), key
    return best


def fit(image: Image.Image, width: int, height: int, scaler: Scaler | None = None) -> tuple[np.ndarray, TileMap]:
    """Resize to fit (bicubic), centred on mid grey: [height, width, 3] uint8. The pixels are those that a server gives
    the model, and come five times as fast as from Pillow where the native library is built.
    """
    w, h = image.size
    if w / h > width / height:
        new_w, new_h = width, round(h / w * width)
    elif w / h < width / height:
        new_w, new_h = round(w / h * height), height
    else:
        new_w, new_h = width, height
    resized = (scaler or Scaler(image)).to(new_w, new_h)
    x, y = round((width - new_w) * 0.5), round((height - new_h) * 0.5)
    if (new_w, new_h) != (width, height):
        canvas = np.full((height, width, 3), 127, np.uint8)
        canvas[y : y + new_h, x : x + new_w] = resized
        resized = canvas
    return resized, TileMap(new_w / w, new_h / h, x, y)


def tiles_of(image: Image.Image, tiled: bool = True) -> tuple[np.ndarray, list[TileMap], tuple[int, int]]:
    """Tiles [n, 384, 384, 3] uint8, their maps, and the grid. A 1×1 grid gives one tile: both views are equal."""
    scaler = Scaler(image)
    view, view_map = fit(image, TILE, TILE, scaler)
    across, down = best_grid(*image.size) if tiled else (1, 1)
    pixels, maps = [view], [view_map]
    if (across, down) != (1, 1):
        big, m = fit(image, across * TILE, down * TILE, scaler)
        for r in range(down):
            for c in range(across):
                pixels.append(big[r * TILE : (r + 1) * TILE, c * TILE : (c + 1) * TILE])
                maps.append(TileMap(m.scale_x, m.scale_y, m.offset_x - c * TILE, m.offset_y - r * TILE))
    return np.stack(pixels), maps, (across, down)


@dataclass(frozen=True)
class Layout:
    """Where each prefix token of a row comes from.

    `grids` are the pictures' tile grids, `text` the token counts of the text pieces around them (one more than
    pictures). Sources are numbered like the table of `NanoVL2.merge`: tile tokens, newline, separator, text.
    """

    grids: tuple[tuple[int, int], ...]
    text: tuple[int, ...]

    @cached_property
    def tiles_per_image(self) -> list[int]:
        return [1 if g == (1, 1) else 1 + g[0] * g[1] for g in self.grids]

    @cached_property
    def num_tiles(self) -> int:
        return sum(self.tiles_per_image)

    @cached_property
    def index(self) -> np.ndarray:
        """Source of each prefix token [P]."""
        per_tile = SIDE * SIDE
        newline, separator, text = (self.num_tiles * per_tile + i for i in range(3))
        square = np.arange(per_tile).reshape(SIDE, SIDE)

        def block(grid: np.ndarray) -> list[int]:
            return np.concatenate((grid, np.full((len(grid), 1), newline)), 1).ravel().tolist()

        out = list(range(text, text + self.text[0]))
        text += self.text[0]
        tile = 0
        for (across, down), count, pieces in zip(self.grids, self.tiles_per_image, self.text[1:]):
            out += [*block(square + tile * per_tile), separator]
            local = [
                [square + (tile + (0 if count == 1 else 1 + r * across + c)) * per_tile for c in range(across)]
                for r in range(down)
            ]
            out += block(np.block(local))
            out += range(text, text + pieces)
            text, tile = text + pieces, tile + count
        return np.array(out, dtype=np.int64)
