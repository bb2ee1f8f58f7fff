"""Scaling in C, where it was built and this processor can run it; `resample.py` takes Pillow elsewhere."""

from __future__ import annotations

import ctypes
import functools
import logging
import platform
from ctypes import c_int64, c_void_p
from pathlib import Path

from vl2.core.cpu import AVX2, cpu_words

P, N = c_void_p, c_int64

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent


@functools.cache
def load() -> ctypes.CDLL | None:
    """None where there is none that can be used. Its functions leave the GIL."""
    path = FOLDER / "pictures-x86-64-v3.so"
    if not (platform.machine() == "x86_64" and cpu_words() >= AVX2 and path.exists()):
        log.info("pictures are scaled by Pillow: the native library was not built, or this processor is too old for it")
        return None
    try:
        found = ctypes.CDLL(str(path))
        found.vl2_scale_rows.argtypes = (P, N, N, P, N, N, N, P, P, P, N, P)
        found.vl2_scale_columns.argtypes = (P, P, N, N, N, P, P, N)
        found.vl2_pack.argtypes = (P, P, N)
        found.vl2_scale_rows.restype = found.vl2_scale_columns.restype = found.vl2_pack.restype = None
    except (OSError, AttributeError) as error:  # no library; one that lacks a function
        log.warning("pictures are scaled by Pillow: %s; install vl2 again", error)
        return None
    return found


def spare_bytes(width: int) -> int:
    """What `vl2_scale_rows` needs for rows of so many pixels: four of them, with room for the last read of each."""
    return 4 * (3 * width + 16)
