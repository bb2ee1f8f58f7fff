"""Pixels of a scene: grounds, pictograms, shapes and printed text.

Everything is drawn from a `random.Random`, so a seed is a picture. Sprites, fonts and ground textures are loaded once
a process. A drawn item is a `Stamp`: an RGBA picture cropped to what is visible, plus its characters' boxes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from names import COLOURS, OBJECTS
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFont

DATA = Path(__file__).parent / "data"
SPRITE, COLUMNS = 96, 16
STYLES = ("noto", "noto-v1", "fluent-emoji-flat", "emojione")
HELD_OUT_STYLE = "twemoji"
RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]


@dataclass(slots=True)
class Stamp:
    image: Image.Image
    chars: list[tuple[str, Box]] = field(default_factory=list)  # boxes inside the stamp


# ------------------------------------------------------------------------------------------------------ pictograms


@lru_cache(None)
def _sprites(style: str) -> list[Image.Image]:
    atlas = Image.open(DATA / f"{style}.webp").convert("RGBA")
    cells = []
    for i in range(len(OBJECTS)):
        x, y = i % COLUMNS * SPRITE, i // COLUMNS * SPRITE
        cell = atlas.crop((x, y, x + SPRITE, y + SPRITE))
        cells.append(cell.crop(_visible(cell)))
    return cells


def _visible(image: Image.Image) -> Box:
    """The box of what is more than faintly opaque (alpha above 40)."""
    alpha = image.getchannel("A")
    return ImageChops.add(alpha, alpha, 2, -40).getbbox() or (0, 0, *image.size)


def _turned(image: Image.Image, degrees: float) -> Image.Image:
    if abs(degrees) < 1:
        return image
    image = image.rotate(degrees, Image.Resampling.BILINEAR, expand=True)
    return image.crop(_visible(image))


@lru_cache(None)
def _tones() -> list[np.ndarray]:
    """200 curves of brightness, each a table of 256 values, from a fixed seed."""
    r, v = np.random.RandomState(13), np.arange(256) / 255
    curves = [255 * (1 + r.normal(0, 0.1)) * v ** np.exp(r.normal(0, 0.22)) for _ in range(200)]
    return [c.clip(0, 255).round().astype(np.uint8) for c in curves]


def _recoloured(rng: Random, cell: Image.Image) -> Image.Image:
    """Other tones of each channel, sometimes paler: another drawing style differs in these, the object does not."""
    pixels = np.array(cell)
    for channel, table in enumerate(rng.choices(_tones(), k=3)):
        pixels[..., channel] = table[pixels[..., channel]]
    cell = Image.fromarray(pixels)
    return ImageEnhance.Color(cell).enhance(rng.uniform(0.2, 1.5)) if rng.random() < 0.3 else cell


def pictogram(rng: Random, index: int, style: str, size: float, wild: bool = False) -> Stamp:
    """An object, its longer side `size` pixels; sometimes mirrored or slightly turned. `wild` ones also have other tones and
    another aspect: training's help for styles that it does not see."""
    cell = _sprites(style)[index]
    width, height = cell.size
    if wild:
        width = round(width * math.exp(rng.gauss(0, 0.1))) or 1
        cell = _recoloured(rng, cell) if rng.random() < 0.6 else cell
    scale = size / max(width, height)
    image = cell.resize(
        (max(4, round(width * scale)), max(4, round(height * scale))),
        Image.Resampling.BICUBIC,
        reducing_gap=2.0,
    )
    if rng.random() < 0.3:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return Stamp(_turned(image, rng.gauss(0, 8) if rng.random() < 0.6 else 0))


# ---------------------------------------------------------------------------------------------------------- shapes


def _polygon(n: int, start: float, radii: tuple[float, ...] = (1.0,)) -> list[tuple[float, float]]:
    return [
        (
            radii[i % len(radii)] * math.cos(start + 2 * math.pi * i / n),
            radii[i % len(radii)] * math.sin(start + 2 * math.pi * i / n),
        )
        for i in range(n)
    ]


def _heart() -> list[tuple[float, float]]:
    points = []
    for i in range(40):
        t = 2 * math.pi * i / 40
        x = 16 * math.sin(t) ** 3
        y = -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
        points.append((x / 17, y / 17))
    return points


_OUTLINES = {
    "circle": _polygon(48, 0.0),
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": _polygon(3, -math.pi / 2),
    "diamond": [(0, -1), (0.72, 0), (0, 1), (-0.72, 0)],
    "star": _polygon(10, -math.pi / 2, (1.0, 0.42)),
    "heart": _heart(),
    "cross": [(-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32), (0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32)],
    "hexagon": _polygon(6, 0.0),
}  # fmt: skip


def shape(rng: Random, name: str, colour: str, size: float, outline: bool) -> Stamp:
    """A filled shape in one of the eight colours, each channel up to 18 off, with an outline where the ground is near."""
    dye = tuple(max(0, min(255, c + rng.randint(-18, 18))) for c in COLOURS[colour][1])
    turn = math.radians(rng.uniform(-12, 12))
    cos, sin, half = math.cos(turn), math.sin(turn), size  # drawn at double size, then halved: smooth edges
    points = [(half * (x * cos - y * sin), half * (x * sin + y * cos)) for x, y in _OUTLINES[name]]
    x0, y0 = min(p[0] for p in points) - 4, min(p[1] for p in points) - 4
    wide, high = max(p[0] for p in points) - x0 + 4, max(p[1] for p in points) - y0 + 4
    image = Image.new("RGBA", (math.ceil(wide), math.ceil(high)), (*dye, 0))
    pen = ImageDraw.Draw(image)
    at = [(x - x0, y - y0) for x, y in points]
    pen.polygon(at, fill=(*dye, 255))
    if outline:
        edge = (60, 60, 60, 255) if sum(dye) > 380 else (225, 225, 225, 255)
        pen.line([*at, at[0], at[1]], fill=edge, width=max(3, round(size / 22)), joint="curve")
    image = image.resize((max(4, image.width // 2), max(4, image.height // 2)), Image.Resampling.BOX)
    return Stamp(image.crop(_visible(image)))


# ------------------------------------------------------------------------------------------------------------ text


@lru_cache(None)
def font_files(chinese: bool) -> list[Path]:
    return sorted((DATA / "fonts").glob("han-*" if chinese else "latin-*")) or sorted((DATA / "fonts").glob("*"))


@lru_cache(600)
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


def printed(
    rng: Random, text: str, size: float, ink: RGB, plate: RGB | None, max_width: float, again: tuple[str, ...] = ()
) -> Stamp:
    """A line of text in a random font, slightly turned; `plate` is an optional sign behind it, `again` are Latin fonts to take more often."""
    chinese = any(ord(c) > 0x2E80 for c in text)
    files = font_files(chinese)
    if again and not chinese:
        files = files + [files[0].with_name(name) for name in again]
    path = rng.choice(files)
    font = _font(path, max(12, round(size / 2) * 2))
    while font.getlength(text) > max_width and font.size > 14:
        font = _font(path, font.size - 2)
    x0, y0, x1, y1 = font.getbbox(text)
    pad = round(font.size * 0.35) if plate else 2
    image = Image.new(
        "RGBA", (math.ceil(x1 - x0) + 2 * pad, math.ceil(y1 - y0) + 2 * pad), (*plate, 255) if plate else (*ink, 0)
    )
    pen = ImageDraw.Draw(image)
    pen.text((pad - x0, pad - y0), text, font=font, fill=(*ink, 255))
    at = [font.getlength(text[:i]) - x0 + pad for i in range(len(text) + 1)]
    degrees = rng.uniform(-7, 7) if rng.random() < 0.5 else 0
    middle_x, middle_y = image.width / 2, image.height / 2
    if abs(degrees) >= 1:
        image = image.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    left, top, right, bottom = _visible(image)
    chars = []
    for c, a, b in zip(text, at, at[1:]):
        dx = (a + b) / 2 - middle_x
        x = image.width / 2 + dx * cos - left
        y = image.height / 2 - dx * sin - top
        chars.append((c, (x - (b - a) / 2, y - middle_y + pad, x + (b - a) / 2, y + middle_y - pad)))
    return Stamp(image.crop((left, top, right, bottom)), chars)


# --------------------------------------------------------------------------------------------------------- grounds


@lru_cache(None)
def _textures() -> list[np.ndarray]:
    """24 grey textures [512, 512] in 0-1 from a fixed seed: stripes, checks, dots, clouds, grain."""
    r = np.random.RandomState(7)
    y, x = np.mgrid[0:512, 0:512].astype(np.float32)
    out = []
    for i in range(24):
        angle, period = r.uniform(0, np.pi), r.choice([16, 24, 32, 48, 64])
        u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
        kind = i % 6
        if kind == 0:
            t = (np.sin(u * 2 * np.pi / period) + 1) / 2
        elif kind == 1:
            t = ((x // period).astype(int) + (y // period).astype(int)) % 2
        elif kind == 2:
            t = ((x % period - period / 2) ** 2 + (y % period - period / 2) ** 2 < (period / 4) ** 2).astype(np.float32)
        elif kind == 3:
            t = (
                np.asarray(
                    Image.fromarray((r.rand(9, 9) * 255).astype(np.uint8)).resize((512, 512), Image.Resampling.BICUBIC)
                )
                / 255
            )
        elif kind == 4:
            t = (np.sin(u * 2 * np.pi / period) * np.sin(v * 2 * np.pi / period) + 1) / 2
        else:
            t = (
                np.asarray(
                    Image.fromarray((r.rand(128, 128) * 255).astype(np.uint8)).resize(
                        (512, 512), Image.Resampling.BILINEAR
                    )
                )
                / 255
            )
        out.append(np.asarray(t, dtype=np.float32))
    return out


@lru_cache(None)
def _grain() -> np.ndarray:
    return np.random.RandomState(11).normal(0, 1, (2048, 2048)).astype(np.float16)


def random_colour(rng: Random) -> RGB:
    if rng.random() < 0.55:  # pale, as paper and walls are
        return tuple(rng.randint(190, 255) for _ in range(3))
    if rng.random() < 0.3:
        return tuple(rng.randint(10, 75) for _ in range(3))
    return tuple(rng.randint(40, 225) for _ in range(3))


def _near(rng: Random, colour: RGB, step: int) -> RGB:
    return tuple(max(0, min(255, c + rng.randint(-step, step))) for c in colour)


def ground(rng: Random, width: int, height: int) -> tuple[Image.Image, RGB]:
    """A plain, gradient, textured or busy ground, and its mean colour."""
    base = random_colour(rng)
    kind = rng.choices(("plain", "gradient", "textured", "busy"), (3, 3, 3, 2))[0]
    if kind == "plain":
        return Image.new("RGB", (width, height), base), base
    if kind == "gradient":
        corners = np.array([[_near(rng, base, 60) for _ in range(2)] for _ in range(2)], dtype=np.uint8)
        return Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR), base
    if kind == "textured":
        t = rng.choice(_textures())
        ways = [(b, np.float64(other - b)) for b, other in zip(base, _near(rng, base, 45))]
        tile = Image.merge("RGB", [Image.fromarray((t * way + b).astype(np.uint8)) for b, way in ways])
        if rng.random() < 0.5:
            tile = tile.resize((rng.randint(300, 700),) * 2, Image.Resampling.BILINEAR)
        image = Image.new("RGB", (width, height))
        for y in range(0, height, tile.height):
            for x in range(0, width, tile.width):
                image.paste(tile, (x, y))
        return image, base
    image = Image.new("RGB", (width, height), base)
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(15, 60)):
        x, y, s = rng.uniform(-50, width), rng.uniform(-50, height), rng.uniform(8, 160)
        colour = _near(rng, base, 40)
        kind = rng.randint(0, 2)
        if kind == 0:
            pen.ellipse((x, y, x + s, y + s * rng.uniform(0.3, 1)), fill=colour)
        elif kind == 1:
            pen.line((x, y, x + rng.uniform(-s, s), y + s), fill=colour, width=rng.randint(1, 9))
        else:
            pen.polygon([(x + rng.uniform(0, s), y + rng.uniform(0, s)) for _ in range(4)], fill=colour)
    return image, base


def add_noise(rng: Random, image: Image.Image, strength: float) -> Image.Image:
    """Grey grain of the given standard deviation (in 0-255 units)."""
    w, h = image.size
    x, y = rng.randint(0, 2048 - w), rng.randint(0, 2048 - h)
    grain = (_grain()[y : y + h, x : x + w] * np.float16(strength)).astype(np.int16)
    noisy = np.stack((grain,) * 3, -1)
    noisy += np.asarray(image)
    return Image.fromarray(noisy.clip(0, 255, out=noisy).astype(np.uint8))


def cover(rng: Random, image: Image.Image, box: Box, share: float) -> None:
    """Hide about `share` of a box behind a grey-brown leaf that comes in from one side."""
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    colour = tuple(rng.randint(90, 170) + rng.randint(-10, 10) for _ in range(3))
    points = [
        (0.0, 0.0),
        (share, 0.0),
        (share * rng.uniform(0.6, 1.2), 0.5),
        (share * rng.uniform(0.7, 1.0), 1.0),
        (0.0, 1.0),
    ]
    side = rng.randint(0, 3)
    if side % 2:
        points = [(1 - u, v) for u, v in points]
    if side >= 2:
        points = [(v, u) for u, v in points]
    ImageDraw.Draw(image).polygon([(x0 + u * w, y0 + v * h) for u, v in points], fill=colour)
