"""A picture as people send it → uint8 tiles, exactly as the official processor cuts them.

Source: `tokenize_with_images` of the official `processing_deepseek_vl_v2.py`; `ImageOps.pad` of Pillow.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin, WebPImagePlugin  # these two register themselves; nothing else is loaded

from vl2.core.config import ProcessorConfig
from vl2.core.errors import InvalidImage, TooLarge
from vl2.core.tiling import TileGeometry
from vl2.core.types import ImageSource
from vl2.processing import isolated
from vl2.processing.resample import Scaler

PAD_VALUE = 127
"""Grey level around a picture that does not fill its view: int(0.5 · 255)."""

LONGEST_SIDE = 65_535
"""Pixels, as in a JPEG. A picture of one long line would take hundreds of times its own memory to be scaled."""

Image.preinit()  # PNG, JPEG, GIF, BMP
FORMATS = ("PNG", "JPEG", TiffImagePlugin.TiffImageFile.format, WebPImagePlugin.WebPImageFile.format, "GIF", "BMP")
"""What is decoded; of animations the first frame. Formats that run code or other programs (EPS …) stay off."""

ISOLATED = ("GIF", "TIFF")
"""Decoded in a process that can be killed."""

ORIENTATION_TAG = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
GREY_BITS = (8, 10, 12, 14, 16, 24, 32)

SEND_SMALLER = "Send it smaller; the model sees at most 9 tiles of it"
NAMES = "PNG, JPEG, WebP, GIF, BMP or TIFF"


def open_image(source: ImageSource, limits: ProcessorConfig) -> Image.Image:
    """Decode a picture to RGB; `to_rgb` tells what becomes of other modes.

    Turned as its EXIF orientation says, unless `limits.exif` is "official": the official code does not.

    Raises: InvalidImage for what is no picture, is truncated or has too many pixels; TooLarge for too many bytes.
    """
    if isinstance(source, Image.Image):
        return _decode(source, limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open_bytes(bytes(source), limits)
    path = Path(os.fspath(source))
    try:
        _check_bytes(path.stat().st_size, limits)
        return _open_bytes(path.read_bytes(), limits)
    except (OSError, ValueError) as error:
        raise InvalidImage(f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}") from None


def _open_bytes(data: bytes, limits: ProcessorConfig) -> Image.Image:
    _check_bytes(len(data), limits)
    if _format_of(data[:16]) in ISOLATED:
        return isolated.decode_picture(data, limits)
    return decode_bytes(data, limits)


def decode_bytes(data: bytes, limits: ProcessorConfig) -> Image.Image:
    """In this process, whatever the format. Raises: InvalidImage."""
    return _decode(_identify(data, limits), limits)


def _check_bytes(num_bytes: int, limits: ProcessorConfig) -> None:
    if num_bytes == 0:
        raise InvalidImage("the picture is empty (0 bytes)")
    if num_bytes > limits.max_image_bytes:
        raise TooLarge(
            f"the picture has {num_bytes} bytes; the limit is {limits.max_image_bytes} (max_image_bytes). "
            "Send it smaller or more strongly compressed"
        )


def _format_of(prefix: bytes) -> str | None:
    for name in FORMATS:
        _, accept = Image.OPEN[name]
        if accept is not None and accept(prefix) is True:
            return name
    return None


def _identify(data: bytes, limits: ProcessorConfig) -> Image.Image:
    """Read a picture's header. Like Image.open, but silent about size, which `_decode` checks by our own limit."""
    name = _format_of(data[:16])
    if name is None:
        raise InvalidImage(f"the data is not a picture that vl2 can read; send {NAMES}")
    try:
        return Image.OPEN[name][0](io.BytesIO(data), "")
    except Image.DecompressionBombError:  # WebP's decoder takes a canvas at once, so Pillow looks at its size first
        limit = min(limits.max_image_pixels, 2 * (Image.MAX_IMAGE_PIXELS or 0))
        raise InvalidImage(
            f"the picture's header says more pixels than the limit of {limit} (max_image_pixels). " + SEND_SMALLER
        ) from None
    except Exception as error:  # decoders raise nearly anything on broken input
        raise InvalidImage(f"the picture is a broken {name}: {_one_line(error)}") from None


def _decode(image: Image.Image, limits: ProcessorConfig) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise InvalidImage(f"the picture has no pixels ({width} × {height})")
    if width * height > limits.max_image_pixels:
        raise InvalidImage(
            f"the picture has {width} × {height} = {width * height} pixels; the limit is {limits.max_image_pixels} "
            f"(max_image_pixels). {SEND_SMALLER}"
        )
    if max(width, height) > LONGEST_SIDE:
        raise InvalidImage(
            f"the picture has {width} × {height} pixels; the limit of a side is {LONGEST_SIDE}. Send it smaller, or cut"
        )
    try:
        image.load()
        return to_rgb(image if limits.exif == "official" else turned(image))
    except Exception as error:  # decoders raise nearly anything on broken input
        raise InvalidImage(f"the picture cannot be decoded, it may be truncated: {_one_line(error)}") from None


def turned(image: Image.Image) -> Image.Image:
    """As its EXIF orientation wants it shown; as it is where that is missing or broken."""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG)
    except Exception:  # a broken EXIF block does not make a broken picture
        return image
    method = TURNS.get(orientation or 1)
    return image if method is None else image.transpose(method)


def to_rgb(image: Image.Image) -> Image.Image:
    """Alpha is dropped, not blended, as in the official code; palettes and CMYK as Pillow converts them.

    Grey of more than 8 bits is scaled by the fewest bits (8, 10, 12, 14, 16, 24, 32) that hold its brightest value, so
    that a medical picture keeps its contrast; floats up to 1 count as shares. Pillow alone would cut all at 255.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(to_eight_bits(np.asarray(image))).convert("RGB")
    return image.convert("RGB")


def to_eight_bits(pixels: np.ndarray) -> np.ndarray:
    values = np.nan_to_num(pixels.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(0)
    brightest = values.max(initial=0.0)
    if pixels.dtype.kind == "f" and brightest <= 1:
        top = 1.0
    else:
        top = next((2.0**bits - 1 for bits in GREY_BITS if brightest <= 2.0**bits - 1), brightest)
    return (values * (255 / top)).round().astype(np.uint8)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def make_tiles(image: Image.Image, grid: tuple[int, int], geometry: TileGeometry) -> np.ndarray:
    """Cut an RGB picture: the global view first, then `grid` = (across, down) local tiles row by row.

    Returns: uint8 [1 + across · down, side, side, 3]. One local tile is the global view again: both lie in the same
    memory.
    """
    side, (across, down) = geometry.side, grid
    scaler = Scaler(image)
    whole = fitted(scaler, side, side)
    if across == down == 1:
        return np.broadcast_to(whole, (2, side, side, 3))
    tiles = np.empty((1 + across * down, side, side, 3), np.uint8)
    tiles[0] = whole
    view = fitted(scaler, across * side, down * side)
    tiles[1:].reshape(down, across, side, side, 3)[:] = view.reshape(down, side, across, side, 3).swapaxes(1, 2)
    return tiles


def fitted(scaler: Scaler, width: int, height: int) -> np.ndarray:
    """Scale to fit into `width` × `height`, keeping the aspect, centred on grey.

    Returns: uint8 [height, width, 3].
    """
    new_width, new_height = fitted_size(scaler.width, scaler.height, width, height)
    pixels = scaler.to(new_width, new_height)
    if (new_width, new_height) == (width, height):
        return pixels
    left, top = round((width - new_width) * 0.5), round((height - new_height) * 0.5)
    view = np.full((height, width, 3), PAD_VALUE, np.uint8)
    view[top : top + new_height, left : left + new_width] = pixels
    return view


def fitted_size(width: int, height: int, view_width: int, view_height: int) -> tuple[int, int]:
    """Size of a picture scaled to fit a view, rounded half to even. At least one pixel: a thinner line is kept."""
    ratio, view_ratio = width / height, view_width / view_height
    if ratio > view_ratio:
        return view_width, max(1, round(height / width * view_width))
    if ratio < view_ratio:
        return max(1, round(width / height * view_height)), view_height
    return view_width, view_height


def tile_key(tile: np.ndarray, geometry: TileGeometry) -> bytes:
    """BLAKE2b-256 of a tile's pixels and of the geometry that turns them into features: equal key, equal features."""
    prefix = f"{geometry.side}/{geometry.patch_size}/{geometry.downsample_ratio}:".encode()
    digest = hashlib.blake2b(prefix, digest_size=32)
    digest.update(np.ascontiguousarray(tile).data)
    return digest.digest()
