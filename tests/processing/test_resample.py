"""Scaling in strips: the same pixels, however many cores there are."""

import os
import platform
import signal
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vl2.core.cpu import AVX2, cpu_words
from vl2.processing import native, resample
from vl2.processing.coefficients import KEPT, KEPT_BYTES, coefficients, parts
from vl2.processing.resample import Scaler


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def pillow(image: Image.Image, width: int, height: int) -> np.ndarray:
    across = image.resize((width, image.height), Image.Resampling.BICUBIC)
    return np.asarray(across.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(params=["native", "pillow"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pillow":
        monkeypatch.setattr(native, "load", lambda: None)
    elif native.load() is None:
        pytest.skip("the native library is not there")
    return request.param


@pytest.mark.parametrize("size", [(384, 384), (384, 256), (700, 467), (500, 333), (750, 333), (1, 1)])
@pytest.mark.parametrize("num_threads", [0, 3])
@pytest.mark.parametrize("most_whole", [0, resample.MOST_WHOLE_PIXELS])
def test_strips_give_the_pixels_of_the_whole(
    size: tuple[int, int], num_threads: int, most_whole: int, by: str, monkeypatch
):
    helpers = ThreadPoolExecutor(num_threads) if num_threads else None
    monkeypatch.setattr(resample, "MOST_WHOLE_PIXELS", most_whole)
    monkeypatch.setattr(resample, "_helpers", lambda: helpers)
    monkeypatch.setattr(resample, "MIN_STRIP_PIXELS", 10_000)
    monkeypatch.setattr(resample, "MIN_NATIVE_STRIP_PIXELS", 10_000)
    image = noise(750, 500)
    np.testing.assert_array_equal(Scaler(image).to(*size), pillow(image, *size))


@pytest.mark.cpu_only
def test_a_checkout_has_the_native_library():
    """It is built where the package is installed; without it all tests of it would be skipped in silence."""
    assert native.load() is not None or not can_be_built()


def can_be_built() -> bool:
    is_known = platform.machine() == "x86_64" and cpu_words() >= AVX2
    return is_known and sys.platform == "linux" and not os.environ.get("VL2_WITHOUT_NATIVE")


@settings(max_examples=150, deadline=None)
@given(
    old=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    new=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    seed=st.integers(0, 2**32 - 1),
    has_extremes=st.booleans(),
    is_whole=st.booleans(),
)
def test_any_size_becomes_any_other_with_the_pixels_of_pillow(
    old: tuple[int, int], new: tuple[int, int], seed: int, has_extremes: bool, is_whole: bool
):
    """Extremes: only 0 and 255, where the filter overshoots most."""
    dice = np.random.default_rng(seed)
    pixels = dice.integers(0, 2, (old[1], old[0], 3)) * 255 if has_extremes else dice.integers(0, 256, (*old[::-1], 3))
    image = Image.fromarray(pixels.astype(np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        if not is_whole:
            patch.setattr(resample, "MOST_WHOLE_PIXELS", 0)
            patch.setattr(resample, "MIN_NATIVE_STRIP_PIXELS", 10_000)
        np.testing.assert_array_equal(Scaler(image).to(*new), pillow(image, *new))


@pytest.mark.parametrize("size", [(40_000, 3), (3, 40_000), (32 * 384, 20), (2, 2), (1, 5)])
def test_lines_and_specks_have_the_pixels_of_pillow(size: tuple[int, int], by: str):
    image = noise(*size)
    np.testing.assert_array_equal(Scaler(image).to(384, 384), pillow(image, 384, 384))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (4, 2), (5, 9), (17, 4)])
def test_narrow_pictures_have_the_pixels_of_pillow(size: tuple[int, int], by: str):
    """Their last rows are read beyond their end, in a copy."""
    image = noise(*size)
    np.testing.assert_array_equal(Scaler(image).to(9, 5), pillow(image, 9, 5))


@pytest.mark.skipif(native.load() is None, reason="the native library is not there")
@pytest.mark.parametrize("edge", ["start", "end"])
def test_the_native_library_stays_within_its_memory(edge: str):
    """All it is given lies between pages that nobody may touch, in a process of its own."""
    assert guarded(edge).stdout.split() == ["done"]


@pytest.mark.skipif(native.load() is None, reason="the native library is not there")
@pytest.mark.parametrize("edge", ["before", "behind"])
def test_those_pages_end_who_touches_them(edge: str):
    assert guarded(edge).returncode == -signal.SIGSEGV


def guarded(edge: str) -> subprocess.CompletedProcess[str]:
    run = Path(__file__).with_name("guarded_run.py")
    return subprocess.run([sys.executable, run, edge], capture_output=True, text=True, check=False, timeout=120)


def test_a_large_picture_is_not_copied(by: str):
    """Of 36 MiB in three bytes a pixel. What is counted: memory of numpy and Python, not that of Pillow's pictures."""
    image = noise(4096, 3072)
    tracemalloc.start()
    try:
        scaler = Scaler(image)
        scaler.to(384, 288), scaler.to(1152, 864)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (24 if by == "native" else 40) * 2**20


def test_weights_that_are_kept_are_bounded_in_bytes():
    """Anybody can send a picture of any length, each with its own weights; the longest have megabytes of them."""
    sizes = [(110_000 - i, 3456) for i in range(5)] + [(7800 - i, 384) for i in range(200)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for old, new in sizes:
            coefficients(old, new), parts(old, new)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert KEPT_BYTES * KEPT < after - before < 2.5 * KEPT_BYTES * KEPT


def test_a_picture_of_that_size_is_not_scaled():
    image = noise(40, 30)
    np.testing.assert_array_equal(Scaler(image).to(40, 30), np.asarray(image))


def test_results_come_in_order(monkeypatch):
    monkeypatch.setattr(resample, "_helpers", lambda: ThreadPoolExecutor(3))
    assert resample.spread(lambda x: 2 * x, range(20)) == list(range(0, 40, 2))
