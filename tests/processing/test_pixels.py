"""Pixels out of Pillow's memory: those that Pillow itself gives, whatever the size and where the picture is from."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vl2.processing import native, pixels
from vl2.processing.pixels import pixels_of


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 1), (1, 7), (3, 1), (4, 1), (5, 3), (8, 1), (9, 1), (383, 257), (1152, 768)]
)
def test_they_are_those_of_pillow(size: tuple[int, int]) -> None:
    image = noise(*size)
    np.testing.assert_array_equal(pixels_of(image), np.asarray(image))


def test_a_file_and_what_is_made_of_a_picture_too() -> None:
    file = io.BytesIO()
    noise(300, 200).save(file, "JPEG")
    decoded = Image.open(file)
    decoded.load()
    for image in (
        decoded,
        decoded.crop((3, 5, 290, 180)),
        decoded.transpose(Image.Transpose.ROTATE_90),
        decoded.copy(),
    ):
        np.testing.assert_array_equal(pixels_of(image), np.asarray(image))


def test_they_outlive_the_picture_and_are_their_own() -> None:
    image = noise(64, 48)
    taken, expected = pixels_of(image), np.asarray(image).copy()
    image.paste((1, 2, 3), (0, 0, 64, 48))
    np.testing.assert_array_equal(taken, expected)
    del image
    np.testing.assert_array_equal(taken, expected)


def test_a_picture_in_several_pieces_of_memory_is_read_by_pillow() -> None:
    image = noise(2100, 2100)  # 17.6 MB, four bytes a pixel
    np.testing.assert_array_equal(pixels_of(image), np.asarray(image))


@pytest.mark.parametrize("what", ["no library", "an older Pillow", "rows with room between"])
def test_without_what_it_needs_pillow_reads(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(40, 30)
    if what == "no library":
        monkeypatch.setattr(native, "load", lambda: None)
    elif what == "an older Pillow":
        monkeypatch.delattr(Image.Image, "__arrow_c_array__", raising=False)
    else:
        monkeypatch.setattr(Image.core, "get_alignment", lambda: 64)
    monkeypatch.setattr(pixels, "_address", lambda *_: pytest.fail("it was read all the same"))
    np.testing.assert_array_equal(pixels_of(image), np.asarray(image))
