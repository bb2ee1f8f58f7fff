"""A picture as people send it → uint8 tiles, exactly as the official processor cuts them.

Source: `tokenize_with_images` of the official `processing_deepseek_vl_v2.py`; `ImageOps.pad` of Pillow.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin, WebPImagePlugin  # these two register themselves; nothing else is loaded

from vl2.core.config import ProcessorConfig
from vl2.core.errors import InvalidImage, TooLarge
from vl2.core.tiling import TileGeometry
from vl2.core.types import ImageSource

PAD_VALUE = 127
"""Grey level around a picture that does not fill its view: int(0.5 · 255)."""

Image.preinit()  # PNG, JPEG, GIF, BMP
FORMATS = ("PNG", "JPEG", TiffImagePlugin.TiffImageFile.format, WebPImagePlugin.WebPImageFile.format, "GIF", "BMP")
"""What is decoded; of animations the first frame. Formats that run code or other programs (EPS …) stay off."""

NAMES = "PNG, JPEG, WebP, GIF, BMP or TIFF"


def open_image(source: ImageSource, limits: ProcessorConfig) -> Image.Image:
    """Decode a picture to RGB: alpha is dropped, not blended; EXIF rotation is not applied (as the official code).

    Raises: InvalidImage for what is no picture, is truncated or has too many pixels; TooLarge for too many bytes.
    """
    if isinstance(source, Image.Image):
        return _decode(source, limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        _check_bytes(len(source), limits)
        return _decode(_identify(io.BytesIO(source)), limits)
    path = Path(os.fspath(source))
    try:
        _check_bytes(path.stat().st_size, limits)
        with path.open("rb") as stream:
            return _decode(_identify(stream), limits)
    except (OSError, ValueError) as error:
        raise InvalidImage(f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}") from None


def _check_bytes(num_bytes: int, limits: ProcessorConfig) -> None:
    if num_bytes == 0:
        raise InvalidImage("the picture is empty (0 bytes)")
    if num_bytes > limits.max_image_bytes:
        raise TooLarge(
            f"the picture has {num_bytes} bytes; the limit is {limits.max_image_bytes} (max_image_bytes). "
            "Send it smaller or more strongly compressed"
        )


def _identify(stream: BinaryIO) -> Image.Image:
    """Read a picture's header. Like Image.open, but silent about size, which `_decode` checks by our own limit."""
    prefix = stream.read(16)
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(prefix) is not True:
            continue
        stream.seek(0)
        try:
            return factory(stream, "")
        except Exception as error:  # decoders raise nearly anything on broken input
            raise InvalidImage(f"the picture is a broken {name}: {_one_line(error)}") from None
    raise InvalidImage(f"the data is not a picture that vl2 can read; send {NAMES}")


def _decode(image: Image.Image, limits: ProcessorConfig) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise InvalidImage(f"the picture has no pixels ({width} × {height})")
    if width * height > limits.max_image_pixels:
        raise InvalidImage(
            f"the picture has {width} × {height} = {width * height} pixels; the limit is {limits.max_image_pixels} "
            "(max_image_pixels). Send it smaller; the model sees at most 9 tiles of it"
        )
    try:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # decoders raise nearly anything on broken input
        raise InvalidImage(f"the picture cannot be decoded, it may be truncated: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def make_tiles(image: Image.Image, grid: tuple[int, int], geometry: TileGeometry) -> np.ndarray:
    """Cut an RGB picture: the global view first, then `grid` = (across, down) local tiles row by row.

    Returns: uint8 [1 + across · down, side, side, 3].
    """
    side, (across, down) = geometry.side, grid
    tiles = np.empty((1 + across * down, side, side, 3), np.uint8)
    tiles[0] = fit_view(image, side, side)
    if across == down == 1:
        tiles[1] = tiles[0]
    else:
        view = fit_view(image, across * side, down * side)
        rows = view.reshape(down, side, across, side, 3)
        tiles[1:].reshape(down, across, side, side, 3)[:] = rows.swapaxes(1, 2)
    return tiles


def fit_view(image: Image.Image, width: int, height: int) -> np.ndarray:
    """Scale to fit into `width` × `height`, keeping the aspect, centred on grey.

    Returns: uint8 [height, width, 3].
    """
    new_width, new_height = fitted_size(image.width, image.height, width, height)
    pixels = np.asarray(resize(image, new_width, new_height))
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


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bicubic, horizontal pass first.

    Pillow ≥ 13 resizes pictures taller than twice their width vertically first, which differs by up to 9/255. One axis
    a call gives the same pixels on every version: those of Pillow ≤ 12, with which the models were published.
    """
    if width != image.width:
        image = image.resize((width, image.height), Image.Resampling.BICUBIC)
    if height != image.height:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image


def tile_key(tile: np.ndarray, geometry: TileGeometry) -> bytes:
    """BLAKE2b-256 of a tile's pixels and of the geometry that turns them into features: equal key, equal features."""
    prefix = f"{geometry.side}/{geometry.patch_size}/{geometry.downsample_ratio}:".encode()
    digest = hashlib.blake2b(prefix, digest_size=32)
    digest.update(np.ascontiguousarray(tile).data)
    return digest.digest()
