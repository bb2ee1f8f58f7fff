"""A folder that a camera writes pictures to: always the newest, and how many were passed over."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vl2.core.errors import SetupError
from vl2.core.media import PICTURE_SUFFIXES


@dataclass(frozen=True, slots=True)
class Frame:
    path: Path
    data: bytes
    num_dropped: int  # pictures that came since the last frame and were passed over for this one


class FrameFolder:
    """Pictures by time of change, then by name. What was there at the beginning is not new."""

    def __init__(self, folder: Path, *, takes_existing: bool = False) -> None:
        self._folder = folder
        self._done = (0, "") if takes_existing else max(self._list(), default=(0, ""))

    def take(self) -> Frame | None:
        """The newest picture that has not been taken, or None. A file that is still empty is not there yet; one that
        was taken half-written comes again when the rest of it is there.
        """
        new = sorted(entry for entry in self._list() if entry > self._done)
        while new:
            stamp, name = new.pop()
            try:
                data = (self._folder / name).read_bytes()
            except OSError:  # it is gone again
                continue
            self._done = (stamp, name)
            return Frame(self._folder / name, data, len(new))
        return None

    def _list(self) -> list[tuple[int, str]]:
        """(time of change, name) of each picture. Raises: SetupError when the folder is gone."""
        try:
            with os.scandir(self._folder) as entries:
                pictures = [entry for entry in entries if entry.name.lower().endswith(PICTURE_SUFFIXES)]
        except OSError as error:
            raise SetupError(f"the folder {self._folder} cannot be read: {error.strerror}") from None
        found = []
        for entry in pictures:
            try:
                status = entry.stat()
            except OSError:
                continue
            if status.st_size:
                found.append((status.st_mtime_ns, entry.name))
        return found
