"""Which of cuBLASLt's algorithms multiplies a shape: the fastest of those that its heuristic names, timed once.

The first in the heuristic's opinion takes up to half as long again (SigLIP's fc2 of two tiles: 36 µs, another 23).
Algorithms add in different orders, and timing is noisy, so a choice is kept beside the tuned tiles (ops/tuning.py): the
next start has the same bits. Where nothing can be kept, nothing is timed, and the heuristic's first is taken.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch

from vl2.ops import tuning
from vl2.ops.cublas_lt import ALGORITHM_BYTES, CublasLtError, Product

log = logging.getLogger(__name__)

CANDIDATES, CANDIDATES_OF_MANY_ROWS, MANY_ROWS = 12, 6, 10_000
"""What takes long to try is tried with fewer."""


class Library(Protocol):
    """As `CublasLt` (ops/cublas_lt.py)."""

    version: int

    def candidates(self, product: Product, most: int) -> list[bytes]: ...

    def supports(self, product: Product, algorithm: bytes) -> bool: ...

    def run(
        self,
        product: Product,
        algorithm: bytes,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        out: torch.Tensor,
        added: torch.Tensor | None = None,
    ) -> None: ...

    def seconds(self, works: Sequence[Callable[[], None]]) -> list[float]: ...


class Choices:
    """Of one device."""

    def __init__(self, library: Library, path: Path) -> None:
        self.cublas_lt, self._path = library, path
        self._chosen: dict[Product, bytes | None] = {}
        self._is_broken = False

    def run(self, product: Product, work: Callable[[bytes], None]) -> bool:
        """Do this with the product's algorithm, which is chosen at its first time. False: torch must multiply, as a
        call failed once, or a graph is being captured, which nothing can be timed in.
        """
        if self._is_broken:
            return False
        try:
            if product not in self._chosen:
                if torch.cuda.is_current_stream_capturing():
                    return False
                self._chosen[product] = self._choose(product, work)
            algorithm = self._chosen[product]
            if algorithm is not None:
                work(algorithm)
            return algorithm is not None
        except CublasLtError as error:
            log.warning("the vision tower's products have torch's algorithms from now on: %s", error)
            self._is_broken = True
            return False

    def _choose(self, product: Product, work: Callable[[bytes], None]) -> bytes | None:
        kept = self._usable(product, self._read())
        if kept is not None:
            return kept
        most = CANDIDATES if product.rows <= MANY_ROWS else CANDIDATES_OF_MANY_ROWS
        working = (one for one in self.cublas_lt.candidates(product, most) if _works(work, one))
        first = next(working, None)
        if first is None or not self._can_keep:
            return first
        candidates = [first, *working]
        times = self.cublas_lt.seconds([functools.partial(work, algorithm) for algorithm in candidates])
        best = candidates[times.index(min(times))]
        log.debug("%s: %.1f µs, the heuristic's first %.1f", product, 1e6 * min(times), 1e6 * times[0])
        try:
            return self._keep(product, best)
        except OSError as error:  # what is not kept must not depend on timing either
            self._can_keep = self._cannot_keep(error)
            return first

    @functools.cached_property
    def _can_keep(self) -> bool:
        """Found out before anything is timed."""
        try:
            with self._locked(), tempfile.TemporaryFile(dir=self._path.parent):
                log.info("timing cuBLAS's algorithms for the vision tower; choices are kept in %s", self._path)
                return True
        except OSError as error:
            return self._cannot_keep(error)

    def _cannot_keep(self, error: OSError) -> bool:
        log.warning("choices cannot be kept in %s (%s), so cuBLAS's heuristic chooses", self._path, error.strerror)
        return False

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One at a time, as replicas start together.

        Raises: OSError where the folder cannot be written.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _usable(self, product: Product, kept: dict[str, bytes]) -> bytes | None:
        algorithm = kept.get(str(product))
        return algorithm if algorithm is not None and self.cublas_lt.supports(product, algorithm) else None

    def _keep(self, product: Product, algorithm: bytes) -> bytes:
        """→ what is kept now: another process's choice, where that came first."""
        with self._locked(), tempfile.TemporaryDirectory(dir=self._path.parent) as folder:
            kept = self._read()
            first = self._usable(product, kept)
            if first is not None:
                return first
            kept[str(product)] = algorithm
            text = json.dumps({"library": self.cublas_lt.version, "algorithms": {key: kept[key].hex() for key in kept}})
            whole = Path(folder) / self._path.name
            whole.write_text(text + "\n", encoding="utf-8")
            whole.replace(self._path)
            return algorithm

    def _read(self) -> dict[str, bytes]:
        """Nothing, where the file is none, of another version of the library, or broken."""
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            kept = {str(key): bytes.fromhex(value) for key, value in content["algorithms"].items()}
            is_whole = all(len(algorithm) == ALGORITHM_BYTES for algorithm in kept.values())
            return kept if is_whole and content["library"] == self.cublas_lt.version else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}


def _works(work: Callable[[bytes], None], algorithm: bytes) -> bool:
    try:
        work(algorithm)
    except CublasLtError as error:
        log.debug("an algorithm that the heuristic names is left out: %s", error)
        return False
    return True


def choices_path(gpu: str) -> Path:
    return tuning.user_file(gpu).with_suffix(".products.json")
