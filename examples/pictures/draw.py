"""Draws the examples' pictures: python examples/pictures/draw.py

They are drawings because nano, the model that ships, knows no photographs. Sprites: Noto Emoji (Apache-2.0).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

sys.path.insert(0, str(Path(__file__).parents[2] / "nano"))  # a folder of scripts

from names import OBJECTS

HERE = Path(__file__).parent
NANO = HERE.parents[1] / "nano"
CELL, COLUMNS = 96, 16
NAMES = [thing.english for thing in OBJECTS]


def sprite(name: str, size: int) -> Image.Image:
    """A pictogram, its longer side `size` pixels."""
    idx = NAMES.index(name)
    left, top = idx % COLUMNS * CELL, idx // COLUMNS * CELL
    with Image.open(NANO / "data/noto.webp") as atlas:
        cell = atlas.convert("RGBA").crop((left, top, left + CELL, top + CELL))
    cell = cell.crop(cell.getbbox())
    return ImageOps.contain(cell, (size, size), Image.Resampling.LANCZOS)


def put(picture: Image.Image, name: str, size: int, x: int, y: int) -> None:
    thing = sprite(name, size)
    picture.paste(thing, (x, y), thing)


def street() -> Image.Image:
    picture = Image.new("RGB", (768, 512), "#cfe3f2")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 210, 768, 280), fill="#a9bfa0")
    pen.rectangle((0, 280, 768, 512), fill="#b9bcc2")
    for x in range(20, 768, 130):
        pen.rectangle((x, 392, x + 60, 400), fill="white")
    put(picture, "house", 150, 40, 110)
    put(picture, "bus", 170, 250, 200)
    put(picture, "taxi", 130, 520, 270)
    put(picture, "car", 130, 110, 370)
    put(picture, "bicycle", 110, 460, 390)
    return picture


def product() -> Image.Image:
    picture = Image.new("RGB", (512, 512), "#f3f1ec")
    put(picture, "shoe", 240, 130, 150)
    font = ImageFont.truetype(str(next((NANO / "data/fonts").glob("latin-03*"))), 56)
    ImageDraw.Draw(picture).text((150, 410), "ROVER", font=font, fill="#222222")
    return picture


def xray() -> Image.Image:
    """16-bit grey whose brightest value has 12 bits, as detectors give it: taken for 16 bits it is nearly black."""
    picture = Image.new("RGB", (512, 512), "#202020")
    for name, size, x, y in (("key", 150, 60, 90), ("scissors", 200, 260, 200)):
        thing = sprite(name, size)
        picture.paste(Image.new("RGB", thing.size, "#e8e8e8"), (x, y), thing.getchannel("A"))
    font = ImageFont.truetype(str(next((NANO / "data/fonts").glob("latin-03*"))), 44)
    ImageDraw.Draw(picture).text((60, 420), "L 42", font=font, fill="white")
    grey = np.asarray(picture.convert("L"), np.float32) / 255 * 4095
    return Image.fromarray(grey.astype(np.uint16))


if __name__ == "__main__":
    street().save(HERE / "street.webp", quality=88, method=6)
    product().save(HERE / "product.webp", quality=88, method=6)
    xray().save(HERE / "xray.png", optimize=True)
