"""Pictures that were cut into tiles before: a second question about a picture does not decode and scale it again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Variant = tuple[str, bool]
"""Whose picture it is, and whether it is tiled as its size asks for."""


@dataclass(frozen=True, slots=True)
class CutPicture:
    """A picture as the model sees it."""

    width: int  # as sent, pixels
    height: int
    tiles_wide: int
    tiles_high: int
    tiles: np.ndarray  # uint8 [1 + tiles_wide · tiles_high, side, side, 3]; read-only, as requests share it
    tile_keys: tuple[bytes, ...]


class PictureCache:
    """By a hash of the file's bytes, least recently used first out, bounded in bytes of tiles. Thread-safe.

    What was cut for one tenant no other meets, so nobody learns from the time of an answer what others have sent.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._pictures: OrderedDict[tuple[bytes, Variant], CutPicture] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: bytes, variant: Variant, cut: Callable[[], CutPicture]) -> CutPicture:
        """The picture that `cut` makes of the file with this digest; a failure is not kept."""
        key = (digest, variant)
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
                return self._pictures[key]
        picture = cut()  # outside the lock: it takes long, and another thread's result is the same
        with self._lock:
            if key not in self._pictures and picture.tiles.nbytes <= self._max_bytes:
                self._pictures[key] = picture
                self._num_bytes += picture.tiles.nbytes
                while self._num_bytes > self._max_bytes:
                    self._num_bytes -= self._pictures.popitem(last=False)[1].tiles.nbytes
        return picture
