from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from vl2.core.config import ProcessorConfig
from vl2.core.errors import InvalidImage, TooLarge
from vl2.core.tiling import TileGeometry
from vl2.processing.images import fitted, fitted_size, make_tiles, open_image, tile_key
from vl2.processing.resample import Scaler

LIMITS = ProcessorConfig()
GEOMETRY = TileGeometry(side=32, patch_size=8, downsample_ratio=2, candidates=((32, 32), (96, 64)))


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def bomb_png(width: int, height: int) -> bytes:
    """A valid header of a huge picture, and next to nothing behind it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


# ---- decoding ----


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
def test_common_formats_are_decoded_to_rgb(file_format):
    picture = open_image(encoded(noise(20, 10), file_format), LIMITS)
    assert (picture.mode, picture.size) == ("RGB", (20, 10))


def test_a_picture_comes_as_bytes_path_or_pil_image(tmp_path):
    picture = noise(20, 10)
    (tmp_path / "picture.png").write_bytes(encoded(picture))
    sources = [encoded(picture), tmp_path / "picture.png", str(tmp_path / "picture.png"), picture]
    assert all(np.array_equal(open_image(source, LIMITS), picture) for source in sources)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I"])
def test_every_mode_becomes_rgb_as_pillow_converts_it(mode):
    picture = noise(20, 10).convert(mode)
    assert np.array_equal(open_image(picture, LIMITS), picture.convert("RGB"))


def test_alpha_is_dropped_not_blended():
    transparent = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    assert open_image(encoded(transparent), LIMITS).getpixel((0, 0)) == (200, 100, 50)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_orientation_says(orientation, file_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(20, 10), file_format, exif=exif)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(open_image(data, LIMITS), shown)
    official = open_image(data, ProcessorConfig(exif="official"))
    assert np.array_equal(official, Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_does_not_make_a_broken_picture():
    data = encoded(noise(20, 10), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert open_image(data, LIMITS).size == (20, 10)


@pytest.mark.parametrize(("brightest", "bits"), [(255, 8), (256, 10), (1023, 10), (4095, 12), (4096, 14), (65535, 16)])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_grey_of_many_bits_keeps_its_contrast(file_format, brightest, bits):
    values = np.linspace(0, brightest, 200).round().astype(np.uint16).reshape(10, 20)
    data = encoded(Image.fromarray(values), file_format)
    grey = np.asarray(open_image(data, LIMITS))[:, :, 0].astype(int)
    assert np.abs(grey - values / (2**bits - 1) * 255).max() <= 0.5


def test_grey_in_floats_counts_as_shares_up_to_one():
    values = np.array([[0.0, 0.5, 1.0, np.nan]], np.float32)
    assert np.asarray(open_image(Image.fromarray(values), LIMITS))[0, :, 0].tolist() == [0, 128, 255, 0]


def test_a_palette_with_a_transparent_colour_shows_its_colour():
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 200, 100, 50])
    assert open_image(encoded(picture, "PNG", transparency=1), LIMITS).getpixel((0, 0)) == (200, 100, 50)


def test_cmyk_of_a_jpeg_is_what_pillow_shows():
    data = encoded(noise(20, 10, "CMYK"), "JPEG", quality=95)
    assert np.array_equal(open_image(data, LIMITS), Image.open(io.BytesIO(data)).convert("RGB"))


def test_the_first_frame_of_an_animation_is_taken():
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    animation = encoded(red, "GIF", save_all=True, append_images=[blue])
    assert open_image(animation, LIMITS).getpixel((0, 0)) == (255, 0, 0)


# ---- bad input ----


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (b"", "empty (0 bytes)"),
        (b"GET / HTTP/1.1", "not a picture that vl2 can read; send PNG, JPEG, WebP, GIF, BMP or TIFF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture that vl2 can read"),
        (b"\x89PNG\r\n\x1a\n", "broken PNG"),
        (encoded(noise(64, 64))[:200], "may be truncated"),
        (encoded(noise(64, 64), "JPEG")[:-500], "may be truncated"),
        (encoded(noise(64, 64), "WEBP")[:200], "broken WEBP"),
        ("/no/such/picture.png", "No such file"),
        ("/", "cannot be opened"),
        ("a\0b", "cannot be opened"),
    ],
    ids=["empty", "text", "eps", "header", "png", "jpeg", "webp", "no-file", "folder", "nul"],
)
def test_what_is_no_picture_is_said_in_one_line(source, problem):
    with pytest.raises(InvalidImage) as caught:
        open_image(source, LIMITS)
    assert problem in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_bomb_is_refused_by_its_header_without_decoding_or_warning(side):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidImage, match=f"{side} × {side} = {side * side} pixels; the limit is 50000000"):
            open_image(bomb_png(side, side), LIMITS)


def test_a_webp_bomb_is_told_our_limit():
    side = (16_383 - 1).to_bytes(3, "little")
    chunk = b"VP8X" + (10).to_bytes(4, "little") + bytes(4) + side + side
    with pytest.raises(InvalidImage, match=r"more pixels than the limit of 50000000 \(max_image_pixels\)"):
        open_image(b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"WEBP" + chunk, LIMITS)


@pytest.mark.parametrize("size", [(65_536, 1), (1, 40_000_000)], ids=str)
def test_a_long_line_is_refused_before_it_is_decoded(size: tuple[int, int]):
    with pytest.raises(InvalidImage, match="the limit of a side is 65535"):
        open_image(bomb_png(*size), LIMITS)
    assert open_image(encoded(Image.new("L", (65_535, 1))), LIMITS).size == (65_535, 1)


def test_pixels_count_for_decoded_pictures_too():
    with pytest.raises(InvalidImage, match="the limit is 100"):
        open_image(noise(20, 10), ProcessorConfig(max_image_pixels=100))


def test_too_many_bytes_are_refused(tmp_path):
    data = encoded(noise(64, 64))
    (tmp_path / "picture.png").write_bytes(data)
    for source in (data, tmp_path / "picture.png"):
        with pytest.raises(TooLarge, match=f"{len(data)} bytes; the limit is 1000"):
            open_image(source, ProcessorConfig(max_image_bytes=1000))


# ---- tiles ----


@pytest.mark.parametrize("size", [(50, 30), (30, 50), (32, 32), (64, 64), (7, 5), (33, 31), (60, 31)])
@pytest.mark.parametrize("view", [(32, 32), (96, 64), (32, 96)])
def test_a_view_is_what_pillow_pads(size, view):
    picture = noise(*size)
    expected = ImageOps.pad(picture, view, Image.Resampling.BICUBIC, color=(127, 127, 127))
    assert np.array_equal(fitted(Scaler(picture), *view), expected)


def test_a_tall_picture_is_resized_horizontally_first_on_every_pillow():
    """Two passes by hand: Pillow itself changed their order for such pictures in version 13."""
    picture = noise(20, 100)
    by_hand = picture.resize((6, 100), Image.Resampling.BICUBIC).resize((6, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(fitted(Scaler(picture), 32, 32)[:, 13:19], by_hand)


def test_sizes_are_rounded_half_to_even_and_never_to_nothing():
    assert fitted_size(64, 5, 32, 32) == (32, 2)  # 2.5
    assert fitted_size(64, 7, 32, 32) == (32, 4)  # 3.5
    assert fitted_size(10_000, 1, 32, 32) == (32, 1)


def test_tiles_are_the_global_view_then_the_local_ones_row_by_row():
    picture = noise(96, 64)  # just 3 × 2 tiles: the local view is the picture itself
    tiles = make_tiles(picture, (3, 2), GEOMETRY)
    pixels = np.asarray(picture)
    assert (tiles.shape, tiles.dtype) == ((7, 32, 32, 3), np.uint8)
    assert np.array_equal(tiles[0], fitted(Scaler(picture), 32, 32))
    assert np.array_equal(tiles[1], pixels[:32, :32])
    assert np.array_equal(tiles[3], pixels[:32, 64:])
    assert np.array_equal(tiles[4], pixels[32:, :32])


def test_the_two_tiles_of_one_tile_lie_in_the_same_memory():
    for picture in (noise(32, 32), noise(40, 30)):
        tiles = make_tiles(picture, (1, 1), GEOMETRY)
        assert tiles.shape == (2, 32, 32, 3) and tiles.strides[0] == 0
        assert np.array_equal(tiles[1], fitted(Scaler(picture), 32, 32))


def test_equal_tiles_have_equal_keys_and_any_change_another():
    tile = make_tiles(noise(40, 30), (1, 1), GEOMETRY)[0]
    changed = tile.copy()
    changed[0, 0, 0] ^= 1
    other_patches = TileGeometry(side=32, patch_size=4, downsample_ratio=2, candidates=GEOMETRY.candidates)
    keys = {tile_key(tile, GEOMETRY), tile_key(changed, GEOMETRY), tile_key(tile, other_patches)}
    assert {len(key) for key in keys} == {32}
    assert len(keys) == 3
    assert tile_key(tile.copy(), GEOMETRY) in keys
