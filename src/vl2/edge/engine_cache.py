"""Engines that an execution provider has built for this machine, on disk from one start to the next.

A folder is good when its seal names every file with its hash. What a crash left half-written, what was damaged, and
what belongs to other weights or another ONNX Runtime has no such seal, and is built again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path

from vl2.checkpoint.source import sha256_of

log = logging.getLogger(__name__)

SEAL = "seal.json"


class EngineCache:
    """`key`: all that engines depend on beside the card: bundle, versions, options."""

    def __init__(self, root: Path, key: bytes) -> None:
        self.folder = root / hashlib.blake2b(key, digest_size=12).hexdigest()

    def open(self) -> bool:
        """Whether the engines there can be used; else the folder is emptied for new ones."""
        if self._is_sealed():
            return True
        if self.folder.exists() and any(self.folder.iterdir()):
            log.warning("the engines in %s are incomplete or damaged; they are built again", self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        return False

    def seal(self) -> None:
        """What lies there now is complete."""
        entries = {path.name: sha256_of(path) for path in self._files()}
        partial = self.folder / f"{SEAL}.partial"
        partial.write_text(json.dumps(entries))
        partial.rename(self.folder / SEAL)

    def _files(self) -> list[Path]:
        return [path for path in sorted(self.folder.iterdir()) if not path.name.startswith(SEAL)]

    def _is_sealed(self) -> bool:
        try:
            entries = json.loads((self.folder / SEAL).read_text())
            return bool(entries == {path.name: sha256_of(path) for path in self._files()})
        except (OSError, ValueError):
            return False
