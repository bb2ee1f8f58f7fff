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

MOST_NATIVE_SHRINKING = 64
"""Of one axis. Weights are numbers for as many pixels: a line of a million pixels would have gigabytes of them."""

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
        is_native = native.library() is not None and self._shrinks_to(width, height) <= MOST_NATIVE_SHRINKING
        return self._natively(width, height) if is_native else _by_pillow(self._image, width, height)

    def _shrinks_to(self, width: int, height: int) -> float:
        return max(self.width / width, self.height / height)

    def _natively(self, width: int, height: int) -> np.ndarray:
        pixels = self.pixels
        if width != self.width:
            pixels = _scaled_rows(pixels, width)
        return pixels if height == self.height else _scaled_columns(pixels, height)


def resize(image: Image.Image, width: int, height: int) -> np.ndarray:
    """An RGB picture, scaled: uint8 [height, width, 3]."""
    return Scaler(image).to(width, height)


# ---- by the native library ------------------------------------------------------------------------------------------


def _scaled_rows(pixels: np.ndarray, width: int) -> np.ndarray:
    library = native.library()
    assert library is not None
    height, old_width, _ = pixels.shape
    bounds, weights = coefficients(old_width, width)
    upper, lower = parts(old_width, width)
    scaled = np.empty((height, width, 3), np.uint8)

    def work(strip: tuple[int, int]) -> None:
        spare = np.empty(native.spare_bytes(old_width), np.uint8)
        library.vl2_scale_rows(
            pixels.ctypes.data, old_width, height, scaled.ctypes.data, width, *strip,
            bounds.ctypes.data, upper.ctypes.data, lower.ctypes.data, weights.shape[1], spare.ctypes.data,
        )  # fmt: skip

    _in_strips(work, _cuts(height, old_width, MIN_NATIVE_STRIP_PIXELS))
    return scaled


def _scaled_columns(pixels: np.ndarray, height: int) -> np.ndarray:
    library = native.library()
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
