"""Scale pictures whose memory lies between pages that nobody may touch; "done" if nobody did. A program of its own:
who touches them is ended by the system.

start, end: which edge of its pages each array keeps to. before, behind: touch a page, as a library that is wrong would.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np

from vl2.processing import native
from vl2.processing.coefficients import coefficients, parts

PAGE = mmap.PAGESIZE
PROT_NONE = 0
PICTURES = [(1, 1), (1, 7), (2, 3), (4, 2), (5, 9), (17, 4), (40, 30), (64, 5), (383, 8)]
SIZES = [(1, 1), (2, 5), (9, 5), (11, 32), (48, 33)]
STRIPS = 2

_protect = ctypes.CDLL(None, use_errno=True).mprotect
_protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Guarded:
    """Arrays between guard pages. They live as long as this does."""

    def __init__(self, edge: str) -> None:
        self._edge = edge
        self._kept: list[mmap.mmap] = []

    def empty(self, shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        inner = -(-num_bytes // PAGE) * PAGE
        pages = mmap.mmap(-1, inner + 2 * PAGE)
        self._kept.append(pages)
        start = PAGE if self._edge == "start" else PAGE + inner - num_bytes
        array = np.frombuffer(pages, np.uint8, num_bytes, start).view(dtype).reshape(shape)
        first = array.ctypes.data - start
        for page in (first, first + PAGE + inner):
            if _protect(page, PAGE, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        return array

    def copy(self, values: np.ndarray) -> np.ndarray:
        array = self.empty(values.shape, values.dtype.type)
        array[:] = values
        return array


def scale(library: ctypes.CDLL, old: tuple[int, int], new: tuple[int, int], edge: str) -> None:
    memory = Guarded(edge)
    (old_width, old_height), (width, height) = old, new
    padded = memory.copy(np.random.default_rng(0).integers(0, 256, (old_height, old_width, 4), np.uint8))
    pixels = memory.empty((old_height, old_width, 3))
    library.vl2_pack(padded.ctypes.data, pixels.ctypes.data, old_width * old_height)
    np.testing.assert_array_equal(pixels, padded[:, :, :3])

    across = memory.empty((old_height, width, 3))
    bounds, upper, lower = map(memory.copy, parts(old_width, width))
    for first, end in strips(old_height):
        spare = memory.empty((native.spare_bytes(old_width),))
        library.vl2_scale_rows(
            pixels.ctypes.data, old_width, old_height, across.ctypes.data, width, first, end,
            bounds.ctypes.data, upper.ctypes.data, lower.ctypes.data, upper.shape[1], spare.ctypes.data,
        )  # fmt: skip

    scaled = memory.empty((height, width, 3))
    bounds, weights = map(memory.copy, coefficients(old_height, height))
    for first, end in strips(height):
        library.vl2_scale_columns(
            across.ctypes.data, scaled.ctypes.data, 3 * width, first, end,
            bounds.ctypes.data, weights.ctypes.data, weights.shape[1],
        )  # fmt: skip


def strips(length: int) -> list[tuple[int, int]]:
    ends = [length * (idx + 1) // STRIPS for idx in range(STRIPS)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def main(edge: str) -> None:
    library = native.load()
    assert library is not None
    if edge in ("before", "behind"):
        array = Guarded("start" if edge == "before" else "end").empty((8, 3))
        ctypes.memset(array.ctypes.data + (-1 if edge == "before" else array.nbytes), 0, 1)
    for old in PICTURES:
        for new in SIZES:
            scale(library, old, new, edge)
    print("done")


if __name__ == "__main__":
    main(sys.argv[1])
