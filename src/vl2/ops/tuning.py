"""Sizes of the kernels' tiles, measured on each kind of GPU: shipped for some, on others by `vl2 tune`.

One file for a kind of GPU, in the package (`assets/tiles`) or in the user's cache folder, which goes first. A GPU that
has none takes the shipped ones, which are right everywhere and fast on what is like it; the log says so once.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from vl2.core.errors import SetupError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Tile = TypeVar("Tile", bound=DataclassInstance)

log = logging.getLogger(__name__)

SHIPPED = "NVIDIA H100 80GB HBM3"
"""What an unknown GPU is taken for."""


@dataclass(frozen=True, slots=True)
class TunedTiles:
    """One file."""

    gpu: str  # as the driver names it
    tiles: Mapping[str, Mapping[str, Any]]  # by kernel: the fields of its tile


def tuned(kernel: str, kind: type[Tile]) -> Tile:
    """The tile of a kernel on this GPU; where there is none, that of the GPU that the shipped ones were measured on.

    Raises: SetupError when the user's own file does not fit this version.
    """
    own, shipped = of_this_gpu(), _shipped(SHIPPED)
    assert shipped is not None
    fields = own.tiles.get(kernel) or shipped.tiles[kernel]
    try:
        return kind(**fields)
    except TypeError as error:
        path = user_file(own.gpu)
        raise SetupError(
            f"{path} has another form of {kernel} than this version ({error}); run `vl2 tune` again"
        ) from None


@functools.cache
def of_this_gpu() -> TunedTiles:
    """Read once. Without a GPU, as in the interpreter, the shipped ones."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else SHIPPED
    found = _read(user_file(gpu)) or _shipped(gpu)
    if found is None:
        log.info("kernels have the tiles that are fast on an %s; `vl2 tune` finds those for this %s", SHIPPED, gpu)
        found = _shipped(SHIPPED)
    assert found is not None
    return found


def save(gpu: str, tiles: Mapping[str, DataclassInstance]) -> Path:
    """Keep what was measured, for the next start; kernels that were not measured keep what they had.

    Raises: SetupError when the folder cannot be written.
    """
    path = user_file(gpu)
    before = _read(path)
    merged = dict(before.tiles if before else {}) | {kernel: asdict(tile) for kernel, tile in tiles.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"gpu": gpu, "tiles": merged}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}; make the folder writable") from None
    return path


def user_file(gpu: str) -> Path:
    return Path(os.path.expanduser("~")) / ".cache" / "vl2" / "tiles" / _file_name(gpu)


def _file_name(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json"


def _shipped(gpu: str) -> TunedTiles | None:
    file = importlib.resources.files("vl2") / "assets" / "tiles" / _file_name(gpu)
    return _parse(file.read_text(encoding="utf-8"), str(file)) if file.is_file() else None


def _read(path: Path) -> TunedTiles | None:
    return _parse(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else None


def _parse(text: str, source: str) -> TunedTiles:
    try:
        return TunedTiles(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise SetupError(f"{source} holds no tiles ({error}); delete it, or run `vl2 tune` again") from None
