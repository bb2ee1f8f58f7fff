"""Scaling in strips: the same pixels, however many cores there are."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from vl2.processing import resample


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def pillow(image: Image.Image, width: int, height: int) -> np.ndarray:
    across = image.resize((width, image.height), Image.Resampling.BICUBIC)
    return np.asarray(across.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [(384, 384), (384, 256), (700, 467), (500, 333), (750, 333), (1, 1)])
@pytest.mark.parametrize("num_threads", [0, 3])
def test_strips_give_the_pixels_of_the_whole(size: tuple[int, int], num_threads: int, monkeypatch):
    helpers = ThreadPoolExecutor(num_threads) if num_threads else None
    monkeypatch.setattr(resample, "_helpers", lambda: helpers)
    monkeypatch.setattr(resample, "MIN_STRIP_PIXELS", 10_000)
    image = noise(750, 500)
    np.testing.assert_array_equal(resample.resize(image, *size), pillow(image, *size))


def test_results_come_in_order(monkeypatch):
    monkeypatch.setattr(resample, "_helpers", lambda: ThreadPoolExecutor(3))
    assert resample.spread(lambda x: 2 * x, range(20)) == list(range(0, 40, 2))
