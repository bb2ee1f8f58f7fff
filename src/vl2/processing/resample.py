"""Bicubic scaling, with the pixels of the published models on every Pillow, by several cores where there are some.

Pillow scales on one core by one number at a time, and takes longer for a large picture than the GPU to look at it. One
axis at a time, rows (then columns) do not depend on each other, so strips of a picture give the same pixels as the
whole. Where there is a native library, it computes Pillow's whole numbers eight at a time.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image

from vl2.processing import native
from vl2.processing.coefficients import coefficients, parts
from vl2.processing.pixels import pixels_of

MAX_STRIPS = 8
MIN_STRIP_PIXELS = 1 << 16
"""Of a strip before scaling: less is not worth a thread."""
MIN_NATIVE_STRIP_PIXELS = 1 << 18
"""As many take the native library a quarter of a millisecond."""

MOST_NATIVE_SHRINKING = 32
"""Of one axis. Weights are numbers for as many pixels: a line of a million pixels would have gigabytes of them."""
MOST_WHOLE_PIXELS = 1 << 22
"""Of a picture that is copied out of Pillow at once: 12 MiB. Pillow shows no larger one's memory, so that a copy would
for a moment be two; of those, strips are cut and copied.
"""

T = TypeVar("T")
R = TypeVar("R")
Box = tuple[int, int, int, int]


@functools.cache
def _helpers() -> ThreadPoolExecutor | None:
    """Threads beside the one that asks; on few cores it works alone."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(min(MAX_STRIPS, cores // 2), "vl2-strips") if cores >= 4 else None


def spread(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`work` of each item, in order. It must leave the GIL, or nothing is won."""
    helpers = _helpers()
    return list(map(work, items) if helpers is None else helpers.map(work, items))


class Scaler:
    """One RGB picture that becomes several sizes."""

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self.width, self.height = image.size

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """uint8 [height, width, 3]."""
        return pixels_of(self._image)

    def to(self, width: int, height: int) -> np.ndarray:
        """Scaled: uint8 [height, width, 3]; horizontal pass first.

        Pillow ≥ 13 resizes pictures taller than twice their width vertically first, which differs by up to 9/255. One
        axis a call gives the same pixels on every version: those of Pillow ≤ 12, with which the models were published.
        """
        if (width, height) == (self.width, self.height):
            return self.pixels
        is_native = native.load() is not None and self._may_be_native(width, height)
        return self._natively(width, height) if is_native else _by_pillow(self._image, width, height)

    @property
    def _is_whole(self) -> bool:
        return self.width * self.height <= MOST_WHOLE_PIXELS

    def _may_be_native(self, width: int, height: int) -> bool:
        shrinks = max(self.width / width, self.height / height)
        return shrinks <= MOST_NATIVE_SHRINKING and (self._is_whole or width != self.width)

    def _natively(self, width: int, height: int) -> np.ndarray:
        if width == self.width:
            pixels = self.pixels
        else:
            pixels = _scaled_rows(self.pixels, width) if self._is_whole else _scaled_rows_of(self._image, width)
        return pixels if height == self.height else _scaled_columns(pixels, height)


# ---- by the native library ------------------------------------------------------------------------------------------


def _scaled_rows(pixels: np.ndarray, width: int) -> np.ndarray:
    height, old_width, _ = pixels.shape
    scaled = np.empty((height, width, 3), np.uint8)
    weights = parts(old_width, width)
    strips = _cuts(height, old_width, MIN_NATIVE_STRIP_PIXELS)
    _in_strips(lambda strip: _scale_rows(pixels, scaled, strip, weights), strips)
    return scaled


def _scaled_rows_of(image: Image.Image, width: int) -> np.ndarray:
    """As above of a picture of which there are never more than some strips, and they are small."""
    scaled = np.empty((image.height, width, 3), np.uint8)
    weights = parts(image.width, width)
    rows = max(1, MIN_NATIVE_STRIP_PIXELS // image.width)

    def work(top: int) -> None:
        bottom = min(top + rows, image.height)
        strip = pixels_of(image.crop((0, top, image.width, bottom)))
        _scale_rows(strip, scaled[top:bottom], (0, bottom - top), weights)

    spread(work, range(0, image.height, rows))
    return scaled


def _scale_rows(
    pixels: np.ndarray, scaled: np.ndarray, strip: tuple[int, int], weights: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    """The rows `strip` of `pixels` → those of `scaled`."""
    library = native.load()
    assert library is not None
    height, old_width, _ = pixels.shape
    bounds, upper, lower = weights
    spare = np.empty(native.spare_bytes(old_width), np.uint8)
    library.vl2_scale_rows(
        pixels.ctypes.data, old_width, height, scaled.ctypes.data, scaled.shape[1], *strip,
        bounds.ctypes.data, upper.ctypes.data, lower.ctypes.data, upper.shape[1], spare.ctypes.data,
    )  # fmt: skip


def _scaled_columns(pixels: np.ndarray, height: int) -> np.ndarray:
    library = native.load()
    assert library is not None
    old_height, width, _ = pixels.shape
    bounds, weights = coefficients(old_height, height)
    scaled = np.empty((height, width, 3), np.uint8)

    def work(strip: tuple[int, int]) -> None:
        library.vl2_scale_columns(
            pixels.ctypes.data, scaled.ctypes.data, 3 * width, *strip,
            bounds.ctypes.data, weights.ctypes.data, weights.shape[1],
        )  # fmt: skip

    _in_strips(work, _cuts(height, width * -(-old_height // height), MIN_NATIVE_STRIP_PIXELS))
    return scaled


def _in_strips(work: Callable[[tuple[int, int]], None], strips: list[tuple[int, int]]) -> None:
    if len(strips) == 1:
        work(strips[0])
    else:
        spread(work, strips)


# ---- by Pillow ------------------------------------------------------------------------------------------------------


def _by_pillow(image: Image.Image, width: int, height: int) -> np.ndarray:
    if width != image.width:
        boxes = [(0, top, image.width, bottom) for top, bottom in _cuts(image.height, image.width, MIN_STRIP_PIXELS)]
        strips = spread(lambda box: _scaled(image, box, width, box[3] - box[1]), boxes)
        image = Image.fromarray(np.concatenate(strips))
    if height == image.height:
        return np.asarray(image)
    boxes = [(left, 0, right, image.height) for left, right in _cuts(image.width, image.height, MIN_STRIP_PIXELS)]
    return np.concatenate(spread(lambda box: _scaled(image, box, box[2] - box[0], height), boxes), axis=1)


def _scaled(image: Image.Image, box: Box, width: int, height: int) -> np.ndarray:
    part = image if box == (0, 0, *image.size) else image.crop(box)
    return np.asarray(part.resize((width, height), Image.Resampling.BICUBIC))


def _cuts(length: int, across: int, min_pixels: int) -> list[tuple[int, int]]:
    """(start, end) of the strips along an axis of this length, as many as are worth it."""
    most = MAX_STRIPS if _helpers() is not None else 1
    num = max(1, min(most, length * across // min_pixels, length))
    ends = [length * (idx + 1) // num for idx in range(num)]
    return list(zip([0, *ends[:-1]], ends, strict=True))
