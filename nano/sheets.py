"""Sheets: pictures crammed with printed lines and pictograms, from which the tower alone learns to see.

A scene shows a handful of things, because it has to be asked about. What a patch shows can be learned from anything, so
a sheet has five to ten times as many labels a tile: printed characters above all, of which the Chinese ones are met too
seldom in scenes. `sheet_batch` mixes them with tiles of scenes, which are larger and say what is whole.
"""

from __future__ import annotations

import string
from random import Random

import draw
import numpy as np
import torch
from names import HANZI, OBJECTS, SHAPES, WORDS
from pack import READABLE, SHEET, TEXT_KEYS, Batch, draw_labels, view_of
from scenes import COLOUR_NAMES, TRAIN_MIX, Item, Mix, Scene, make_scene, make_stamp, sizes_by_grid
from views import TILE, TileMap, tiles_of

ITEMS, CHARS = 28, 56  # labels a tile
TILES = 160  # tiles a micro-batch
_LATIN = string.ascii_letters + string.digits * 2 + "-"


def _line(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.55:
        return "".join(rng.choices(HANZI, k=rng.randint(1, 6)))
    if kind < 0.92:
        return "".join(rng.choices(_LATIN, k=rng.randint(1, 9)))
    word = rng.choice(WORDS)
    return rng.choice((word, word.upper(), word.capitalize()))


def _thing(rng: Random, printed: float) -> Item:
    if rng.random() < printed:
        return Item("text", text=_line(rng))
    if rng.random() < 0.12:
        return Item("shape", rng.randrange(len(SHAPES)), colour=rng.choice(COLOUR_NAMES))
    return Item("object", rng.randrange(len(OBJECTS)), style=rng.choice(draw.STYLES))


def make_sheet(seed: int, mix: Mix = TRAIN_MIX) -> Scene:
    """A 384 × 384 picture filled row by row."""
    rng = Random(seed)
    image, mean = draw.ground(rng, TILE, TILE)
    printed = rng.choice((0.1, 0.5, 0.9))
    big = rng.choice((44, 64, 100, 150))  # the largest thing of this sheet
    items: list[Item] = []
    y = rng.randint(0, 10)
    while y < TILE - 20 and len(items) < ITEMS:
        x, tallest = rng.randint(0, 24), 0
        while x < TILE - 20 and len(items) < ITEMS:
            item = _thing(rng, printed)
            # `make_stamp` prints at 30-72 pixels a `unit`: here 16-72.
            unit = rng.uniform(0.5, 1.0)
            stamp = make_stamp(rng, item, 22 * (big / 22) ** rng.random(), unit, TILE - x, mean, mix)
            w, h = stamp.image.size
            if x + w > TILE or y + h > TILE:
                break
            image.paste(stamp.image, (x, y), stamp.image)
            item.box = (x, y, x + w, y + h)
            item.chars = tuple((c, (a + x, b + y, d + x, e + y)) for c, (a, b, d, e) in stamp.chars)
            items.append(item)
            x, tallest = x + w + rng.randint(2, 20), max(tallest, h)
        y += max(tallest, 12) + rng.randint(2, 12)
    for item in items:
        if item.kind != "text" and rng.random() < 0.06:
            draw.cover(rng, image, item.box, rng.uniform(0.08, 0.3))
    if rng.random() < 0.2:
        image = draw.add_noise(rng, image, rng.uniform(3, 14))
    return Scene(seed, image, items)


def sheet_batch(
    seed: int, sets: int, room: np.ndarray | None = None, tiles: int = TILES, mix: Mix = TRAIN_MIX
) -> Batch:
    """`tiles` tiles to look at, without questions: half sheets, the rest tiles of scenes. It can be used `sets` times."""
    rng = Random(seed)
    room = np.empty((tiles, TILE, TILE, 3), np.uint8) if room is None else room
    shown: list[tuple[Scene, TileMap, int]] = []
    grids = [g for g in sizes_by_grid() if g != (1, 1)]
    while len(shown) < tiles:
        seed += 1
        if len(shown) < tiles // 2:
            scene = make_sheet(seed, mix)
            room[len(shown)] = np.asarray(scene.image)
            shown.append((scene, TileMap(1, 1, 0, 0), READABLE))
            continue
        size = (TILE, TILE) if len(shown) < tiles * 3 // 4 else rng.choice(sizes_by_grid()[rng.choice(grids)])
        scene = make_scene(seed, size, mix=mix)
        pixels, maps, _ = tiles_of(scene.image)
        keep = min(len(pixels), tiles - len(shown))
        room[len(shown) : len(shown) + keep] = pixels[:keep]
        shown += [(scene, m, view_of(t, len(maps))) for t, m in enumerate(maps[:keep])]
    labels = draw_labels(shown, ITEMS, CHARS)
    labels["view"][: tiles // 2] = READABLE  # a sheet is no line and no whole picture
    empty = torch.zeros(sets, tiles, 0, dtype=torch.int16)
    return Batch(
        layout=SHEET, tiles=torch.from_numpy(room[:tiles]), prefix_text=torch.zeros(0, dtype=torch.int64),
        **dict.fromkeys(TEXT_KEYS, empty),
        index=torch.zeros(0, dtype=torch.int64), targets=[torch.zeros(0, dtype=torch.int64)] * sets, asked=[],
        **{k: torch.from_numpy(v) for k, v in labels.items()},
    )  # fmt: skip
