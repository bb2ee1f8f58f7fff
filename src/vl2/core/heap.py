"""The memory of a process that serves: what was freed is kept, and what stays for ever is not looked through."""

from __future__ import annotations

import ctypes
import gc
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 64 * 2**20
"""Free at the end of a heap; each thread that cuts pictures may have one."""
LARGE_BYTES = 32 * 2**20
"""From here on memory comes from the kernel and goes back to it: 8 megapixels, decoded. glibc takes no more."""


def keep_freed_memory() -> bool:
    """For the next picture, from now on. False where there is no glibc: nothing changes then.

    glibc would give it back, and a page got anew takes the kernel one to two microseconds: a picture of 1152 × 768 had
    1,300 of them, two milliseconds.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))


def settle() -> None:
    """Call it when the app is made, or the engine. The garbage collector then leaves alone what there is: modules,
    routes and their models, or the model's parts, 90,000 and 180,000 objects through which it went every few hundred
    requests, 0.1 and 0.25 s in which nothing in this process moved.
    """
    gc.collect()  # or what nobody needs would stay for ever too
    gc.freeze()
