"""The pixels of a decoded picture out of Pillow's memory, which has four bytes for each of three.

Pillow's own way goes by pieces of 64 KiB, each of which holds the GIL, and joins them. Since 11.2 it shows its memory
as an Arrow array; where it does, and there is a native library, that is read in one go.
Source: the Arrow C data interface; `__arrow_c_array__` of Pillow's Image.
"""

from __future__ import annotations

import ctypes

import numpy as np
from PIL import Image

from vl2.processing import native


class _ArrowArray(ctypes.Structure):
    """Its beginning."""


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]

_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def pixels_of(image: Image.Image) -> np.ndarray:
    """Of an RGB picture: uint8 [height, width, 3]."""
    library = native.load()
    capsules = None if library is None else _arrow(image)
    if library is None or capsules is None:
        return np.asarray(image)
    address = _address(capsules[1], image.width * image.height)
    if address is None:
        return np.asarray(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    library.vl2_pack(address, pixels.ctypes.data, image.width * image.height)
    return pixels


def _arrow(image: Image.Image) -> tuple[object, object] | None:
    """Schema and array, which keep the memory; None where Pillow is older, or has no single piece of memory for it."""
    core = Image.core  # type: ignore[attr-defined]  # its hints do not name it
    if image.mode != "RGB" or not hasattr(image, "__arrow_c_array__") or core.get_alignment() != 1:
        return None
    try:
        return image.__arrow_c_array__()
    except ValueError:  # it has more than 16 MiB
        return None


def _address(array: object, num_pixels: int) -> int | None:
    """Of the first pixel; None if the array is not as it is known to be."""
    pixels = ctypes.cast(_pointer_of(array, b"arrow_array"), ctypes.POINTER(_ArrowArray)).contents
    if pixels.length != num_pixels or pixels.offset or pixels.n_children != 1:
        return None
    values = pixels.children[0].contents
    if values.length != 4 * num_pixels or values.offset or values.n_buffers != 2:
        return None
    address: int | None = values.buffers[1]
    return address
