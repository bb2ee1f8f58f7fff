"""Bicubic scaling, with the pixels of the published models on every Pillow, by several cores where there are some.

Pillow scales on one core, and takes longer for a large picture than the GPU to look at it. One axis at a time, rows
(then columns) do not depend on each other, so strips of a picture give the same pixels as the whole.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image

MAX_STRIPS = 8
MIN_STRIP_PIXELS = 1 << 16
"""Of a strip before scaling: less is not worth a thread."""

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


def resize(image: Image.Image, width: int, height: int) -> np.ndarray:
    """An RGB picture, scaled: uint8 [height, width, 3]; horizontal pass first.

    Pillow ≥ 13 resizes pictures taller than twice their width vertically first, which differs by up to 9/255. One axis
    a call gives the same pixels on every version: those of Pillow ≤ 12, with which the models were published.
    """
    if width != image.width:
        boxes = [(0, top, image.width, bottom) for top, bottom in _cuts(image.height, image.width)]
        strips = spread(lambda box: _scaled(image, box, width, box[3] - box[1]), boxes)
        image = Image.fromarray(np.concatenate(strips))
    if height == image.height:
        return np.asarray(image)
    boxes = [(left, 0, right, image.height) for left, right in _cuts(image.width, image.height)]
    return np.concatenate(spread(lambda box: _scaled(image, box, box[2] - box[0], height), boxes), axis=1)


def _scaled(image: Image.Image, box: Box, width: int, height: int) -> np.ndarray:
    part = image if box == (0, 0, *image.size) else image.crop(box)
    return np.asarray(part.resize((width, height), Image.Resampling.BICUBIC))


def _cuts(length: int, across: int) -> list[tuple[int, int]]:
    """(start, end) of the strips along an axis of this length, as many as are worth it."""
    most = MAX_STRIPS if _helpers() is not None else 1
    num = max(1, min(most, length * across // MIN_STRIP_PIXELS, length))
    ends = [length * (idx + 1) // num for idx in range(num)]
    return list(zip([0, *ends[:-1]], ends, strict=True))
