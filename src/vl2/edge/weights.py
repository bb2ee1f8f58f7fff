"""Tensors of a checkpoint as numpy arrays, one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vl2.checkpoint.folder import UNUSED_PREFIX, TensorInfo, list_tensors
from vl2.core.errors import CheckpointError

NUMPY_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


class Weights:
    """By the official names. Every tensor is to be asked for: `check_all_used` tells of those that were not."""

    def __init__(self, folder: Path, on_progress: Callable[[int, int], None] | None = None) -> None:
        """`on_progress(bytes done, bytes in all)` is called after each tensor. Raises: CheckpointError."""
        self.folder, self._on_progress = folder, on_progress
        tensors = list_tensors(folder)
        self._infos = {name: info for name, info in tensors.items() if not name.startswith(UNUSED_PREFIX)}
        self._unused = set(self._infos)
        self._num_done, self._num_bytes = 0, sum(info.num_bytes for info in self._infos.values())

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(info.shape) for info in self._infos.values())

    def get(self, name: str, *shape: int) -> np.ndarray:
        """float32, of the shape that config.json asks for. Raises: CheckpointError."""
        info = self._infos.get(name)
        if info is None:
            raise CheckpointError(
                f"{self.folder} lacks the tensor {name}; do config.json and the weights belong together?"
            )
        if info.shape != shape:
            raise CheckpointError(
                f"{info.file}: {name} has shape {list(info.shape)}, but config.json asks for {list(shape)}"
            )
        self._unused.discard(name)
        self._num_done += info.num_bytes
        if self._on_progress is not None:
            self._on_progress(self._num_done, self._num_bytes)
        return _read(info)

    def stacked(self, names: Sequence[str], *shape: int) -> np.ndarray:
        """Several of one shape, one below the other."""
        return np.concatenate([self.get(name, *shape) for name in names])

    def check_all_used(self) -> None:
        """Raises: CheckpointError."""
        if self._unused:
            raise CheckpointError(
                f"{self.folder} has {len(self._unused)} unknown tensors, first {min(self._unused)}; "
                f"do config.json and the weights belong together?"
            )


def _read(info: TensorInfo) -> np.ndarray:
    if info.dtype not in NUMPY_DTYPES:
        raise CheckpointError(f"{info.file}: {info.name} has type {info.dtype}; weights must be F32, BF16 or F16")
    dtype = np.dtype(NUMPY_DTYPES[info.dtype])
    values = np.fromfile(info.file, dtype, info.num_bytes // dtype.itemsize, offset=info.start)
    if values.nbytes != info.num_bytes:
        raise CheckpointError(f"{info.file} ended while {info.name} was read; download it again")
    values = values.reshape(info.shape)
    if info.dtype == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)
