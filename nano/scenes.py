"""What is in a scene and where: `make_scene(seed)` gives a picture and the truth about it.

    python nano/scenes.py SHEET.png [FIRST_SEED]     # a contact sheet of twenty scenes, to look at

Seeds below `TRAIN_SEEDS` are for evaluation only; training uses larger ones.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from string import ascii_lowercase

import draw
from names import COLOURS, HANZI, OBJECTS, SHAPES, WORDS
from PIL import Image
from views import best_grid

TRAIN_SEEDS = 1_000_000
Box = tuple[float, float, float, float]


@dataclass(slots=True)
class Item:
    """One thing in a scene. `box` is its full extent in pixels of the picture, hidden parts included."""

    kind: str  # object | shape | text
    index: int = -1  # into OBJECTS or SHAPES
    colour: str = ""
    text: str = ""
    style: str = ""
    box: Box = (0, 0, 0, 0)
    chars: tuple[tuple[str, Box], ...] = ()

    def name(self, chinese: bool = False) -> str:
        """`cat`, `red circle`, `text`; 猫, 红色圆形, 文字."""
        if self.kind == "object":
            return OBJECTS[self.index].chinese if chinese else OBJECTS[self.index].english
        if self.kind == "shape":
            english = SHAPE_NAMES[self.index]
            return COLOURS[self.colour][0] + SHAPES[english][1] if chinese else f"{self.colour} {english}"
        return "文字" if chinese else "text"


@dataclass(slots=True)
class Scene:
    seed: int
    image: Image.Image
    items: list[Item]  # left to right, by the middle of the box


SHAPE_NAMES = tuple(SHAPES)
COLOUR_NAMES = tuple(COLOURS)


@lru_cache(None)
def sizes_by_grid() -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Picture sizes from 384×384 to 1500×900, both ways round, sorted by the tile grid that they get."""
    rng, table = Random(5), {(1, 1): [(384, 384)]}
    for _ in range(6000):
        long, short = rng.randint(384, 1500), rng.randint(384, 900)
        size = (long, short) if rng.random() < 0.55 else (short, long)
        table.setdefault(best_grid(*size), []).append(size)
    return table


def sample_size(rng: Random) -> tuple[int, int]:
    """A third of the pictures are one tile; the rest are spread over the tile counts."""
    if rng.random() < 0.34:
        return 384, 384
    grids = [g for g in sizes_by_grid() if g != (1, 1)]
    weights = [len(sizes_by_grid()[g]) ** 0.6 for g in grids]
    return rng.choice(sizes_by_grid()[rng.choices(grids, weights)[0]])


@dataclass(frozen=True, slots=True)
class Mix:
    """How often scenes hold what."""

    kinds: tuple[float, ...]  # objects, count, shapes, text, mixed
    texts: tuple[float, float, float]  # shares of words, numbers and codes, summed up; Chinese is the rest
    numbers: tuple[int, ...]  # how many equal things a "count" scene has
    longest: int = 10  # digits of a number
    wild: float = 0.0  # share of pictograms in other tones and aspects than their set's
    letters: float = 0.0  # share of the words that are random letters
    again: tuple[str, ...] = ()  # fonts that are taken once more often than the others


EXAM_MIX = Mix((26, 24, 12, 24, 14), (0.42, 0.62, 0.72), (1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 8, 9))
#: More of what is slow to learn: many equal things, and strings that no list of words helps to guess.
TRAIN_MIX = Mix(
    (20, 32, 7, 32, 9),
    (0.3, 0.52, 0.64),
    (1, 2, 3, *range(4, 10), 3, *range(4, 10), *range(4, 11)),
    12,
    0.5,
    letters=0.5,
)
MIXES = {"plain": TRAIN_MIX, "fonts": replace(TRAIN_MIX, again=("latin-10.otf",))}  # its letters are the smallest


def random_text(rng: Random, mix: Mix = EXAM_MIX) -> str:
    """A listed word, a number, a letter-digit code, or Chinese; up to 12 characters."""
    kind = rng.random()
    words, numbers, codes = mix.texts
    if kind < words:
        listed = not mix.letters or rng.random() >= mix.letters
        word = rng.choice(WORDS) if listed else "".join(rng.choices(ascii_lowercase, k=rng.randint(2, 10)))
        return rng.choice((word, word.upper(), word.upper(), word.capitalize()))
    if kind < numbers:
        return "".join(rng.choice("0123456789") for _ in range(rng.randint(1, mix.longest)))
    if kind < codes:
        return "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ23456789") for _ in range(rng.randint(2, 7)))
    return "".join(rng.choice(HANZI) for _ in range(rng.randint(1, 6)))


def plan(rng: Random, styles: tuple[str, ...], mix: Mix) -> list[Item]:
    """The things of a scene, without places; the text comes first, because it is the hardest to place."""

    def thing(index: int) -> Item:
        return Item("object", index, style=rng.choice(styles))

    def figure(index: int) -> Item:
        return Item("shape", index, colour=rng.choice(COLOUR_NAMES))

    def objects(n: int) -> list[Item]:
        return [thing(i) for i in rng.sample(range(len(OBJECTS)), n)]

    def figures(n: int) -> list[Item]:
        return [figure(i) for i in rng.sample(range(len(SHAPES)), n)]

    kind = rng.choices(("objects", "count", "shapes", "text", "mixed"), mix.kinds)[0]
    if kind == "objects":
        items = objects(rng.choice((1, 1, 2, 2, 3, 3, 4, 5, 6)))
        if rng.random() < 0.2:
            items.append(thing(items[0].index))
        return items
    if kind == "count":
        n = rng.choice(mix.numbers)
        if rng.random() < 0.75:
            first, style = rng.randrange(len(OBJECTS)), rng.choice(styles)
            items = [Item("object", first, style=style if rng.random() < 0.8 else rng.choice(styles)) for _ in range(n)]
            others = [i for i in objects(rng.choice((0, 1, 1, 2, 3))) if i.index != first]
            return items + others + figures(rng.choice((0, 0, 0, 1)))
        first, colour = rng.randrange(len(SHAPES)), rng.choice(COLOUR_NAMES)
        items = [
            Item("shape", first, colour=colour if rng.random() < 0.7 else rng.choice(COLOUR_NAMES)) for _ in range(n)
        ]
        return items + [i for i in figures(rng.choice((0, 1, 2))) if i.index != first] + objects(rng.choice((0, 1, 2)))
    if kind == "shapes":
        return figures(rng.choice((1, 2, 3, 3, 4, 5)))
    text = [Item("text", text=random_text(rng, mix))]
    if kind == "text":
        return text + objects(rng.choice((0, 0, 1, 2))) + figures(rng.choice((0, 0, 1)))
    return (text if rng.random() < 0.4 else []) + objects(rng.choice((1, 2, 3))) + figures(rng.choice((1, 2, 3)))


def _overlap(a: Box, b: Box) -> float:
    """Shared area as a share of the smaller box."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _distance(a: tuple[int, int, int], b: tuple[int, int, int]) -> int:
    return sum(abs(x - y) for x, y in zip(a, b))


def make_stamp(
    rng: Random,
    item: Item,
    size: float,
    unit: float,
    width: int,
    mean: tuple[int, int, int],
    mix: Mix,
) -> draw.Stamp:
    if item.kind == "object":
        return draw.pictogram(rng, item.index, item.style, size, mix.wild > 0 and rng.random() < mix.wild)
    if item.kind == "shape":
        near = _distance(COLOURS[item.colour][1], mean) < 170
        return draw.shape(rng, SHAPE_NAMES[item.index], item.colour, size, outline=near or rng.random() < 0.15)
    plate = draw.random_colour(rng) if rng.random() < 0.35 else None
    under = plate or mean
    ink = draw.random_colour(rng)
    while abs(sum(ink) - sum(under)) < 270:
        ink = rng.choice(((0, 0, 0), (255, 255, 255), draw.random_colour(rng)))
    # `unit` picture pixels are one tile pixel: letters stay readable after tiling, whatever the picture's size.
    return draw.printed(rng, item.text, rng.uniform(30, 72) * unit, ink, plate, 0.9 * width, mix.again)


def make_scene(
    seed: int, size: tuple[int, int] | None = None, styles: tuple[str, ...] = draw.STYLES, mix: Mix = EXAM_MIX
) -> Scene:
    """The scene of this seed; `size` fixes the picture's size (training groups scenes by size)."""
    rng = Random(seed)
    width, height = sampled = sample_size(rng)
    if size:
        width, height = sampled = size
    across, down = best_grid(*sampled)
    unit = 1 / min(across * 384 / width, down * 384 / height)
    image, mean = draw.ground(rng, width, height)
    planned = plan(rng, styles, mix)
    short, long = min(width, height), max(width, height)
    biggest = min(0.42 * short, (0.5 * width * height / max(1, len(planned))) ** 0.5)
    smallest = min(max(42 * unit, 0.055 * long), 0.8 * biggest)
    placed: list[Item] = []
    common = rng.uniform(smallest, biggest) if rng.random() < 0.5 else None
    for item in planned:
        size_px = smallest * (biggest / smallest) ** rng.random() if common is None else common * rng.uniform(0.85, 1.1)
        for attempt in range(30):
            if attempt % 6 == 0:  # a new drawing, a little smaller, once six places were taken
                stamp = make_stamp(rng, item, max(smallest, size_px * 0.96**attempt), unit, width, mean, mix)
            w, h = stamp.image.size
            if w > width or h > height:
                continue
            x, y = rng.randint(0, width - w), rng.randint(0, height - h)
            box = (x, y, x + w, y + h)
            limit = 0.0 if item.kind == "text" else 0.1
            if all(_overlap(box, p.box) <= (0.0 if p.kind == "text" else limit) for p in placed):
                image.paste(stamp.image, (x, y), stamp.image)
                item.box = box
                item.chars = tuple((c, (a + x, b + y, d + x, e + y)) for c, (a, b, d, e) in stamp.chars)
                placed.append(item)
                break
    for item in placed:
        if item.kind != "text" and rng.random() < 0.08:
            draw.cover(rng, image, item.box, rng.uniform(0.08, 0.3))
    if rng.random() < 0.2:
        image = draw.add_noise(rng, image, rng.uniform(3, 14))
    placed.sort(key=lambda i: i.box[0] + i.box[2])
    return Scene(seed, image, placed)


def main() -> None:
    from PIL import ImageDraw

    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    sheet = Image.new("RGB", (5 * 310, 4 * 250), "white")
    for i in range(20):
        scene = make_scene(first + i)
        pen = ImageDraw.Draw(scene.image)
        for item in scene.items:
            pen.rectangle(item.box, outline=(255, 0, 255), width=max(1, scene.image.width // 300))
        thumb = scene.image.copy()
        thumb.thumbnail((300, 220))
        sheet.paste(thumb, (i % 5 * 310, i // 5 * 250))
        label = ", ".join(x.text or x.name() for x in scene.items).encode("ascii", "replace").decode()
        ImageDraw.Draw(sheet).text((i % 5 * 310, i // 5 * 250 + 226), label[:52], fill=0)
    sheet.save(sys.argv[1])


if __name__ == "__main__":
    main()
