"""Weights in pages of 2 MiB: reading a hundred megabytes a step, 4 KiB ones keep the processor looking up addresses.

Two cores of a virtual machine, 75M parameters: 64 tokens/s before, 78 after (docs/log.md, 2026-11-26). No torch here.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PAGE_BYTES = 2 * 2**20
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25
MAPS = Path("/proc/self/maps")


def collapse_pages() -> None:
    """Ask Linux to hold what this process has allocated until now in huge pages; it copies them, 2–5 GB/s.

    Call it before what is allocated but not written yet, as a page cache, since that would become resident. A kernel
    that cannot or may not says no, and nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # what has been freed is given back
        libc.malloc_trim(0)
    madvise = libc.madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, size in _allocated():
        madvise(start, size, MADV_HUGEPAGE)
        for place in _resident(libc, start, size):
            madvise(place, PAGE_BYTES, MADV_COLLAPSE)


def _resident(libc: ctypes.CDLL, start: int, size: int) -> Iterator[int]:
    """Huge pages of which more than half is resident: one that is empty would be filled with zeros."""
    small = os.sysconf("SC_PAGE_SIZE")
    told = np.zeros(size // small, np.uint8)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    if libc.mincore(start, size, told.ctypes.data) == 0:
        shares = (told & 1).reshape(-1, PAGE_BYTES // small).mean(axis=1)
        yield from (start + PAGE_BYTES * int(idx) for idx in np.flatnonzero(shares > 0.5))


def _allocated() -> Iterator[tuple[int, int]]:
    """(address, bytes) of private memory that no file backs, in whole huge pages."""
    for line in MAPS.read_text().splitlines():
        addresses, permissions, _, _, inode, *name = line.split(maxsplit=5)
        first, last = (int(address, 16) for address in addresses.split("-"))
        start, end = -(-first // PAGE_BYTES) * PAGE_BYTES, last // PAGE_BYTES * PAGE_BYTES
        if permissions == "rw-p" and inode == "0" and name in ([], ["[heap]"]) and end > start:
            yield start, end - start
