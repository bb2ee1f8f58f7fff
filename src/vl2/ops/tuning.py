"""Sizes of the kernels' tiles, measured on each kind of GPU: shipped for some, on others by `vl2 tune`.

One file for a kind of GPU, in the package (`assets/tiles`) or in the user's cache folder, which goes first. What a GPU
has no tile of its own for, it takes from the shipped file for the most shared memory that it has: tiles live there, and
a kernel that wants more cannot start. Those are right on it, and fast on what is like it; the log says so once.
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


@dataclass(frozen=True, slots=True)
class TunedTiles:
    """One file."""

    gpu: str  # as the driver names it; of the shipped ones, what they are for
    tiles: Mapping[str, Mapping[str, Any]]  # by kernel: the fields of its tile
    shared_memory_bytes: int = 0  # of the shipped ones: what a block of threads must be able to have


def tuned(kernel: str, kind: type[Tile]) -> Tile:
    """The tile of a kernel on this GPU.

    Raises: SetupError when the user's own file does not fit this version.
    """
    own, shipped = of_this_gpu(), _shipped(_shared_memory_bytes())
    fields = own.tiles.get(kernel) or shipped.tiles[kernel]
    try:
        return kind(**fields)
    except TypeError as error:
        path = user_file(own.gpu)
        raise SetupError(
            f"{path} has another form of {kernel} than this version ({error}); run `vl2 tune` again"
        ) from None


@functools.cache
def num_multiprocessors(device: torch.device) -> int:
    """In the interpreter a few, so that programs have more than one tile."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


@functools.cache
def of_this_gpu() -> TunedTiles:
    """Read once. Without a GPU, as in the interpreter, the shipped ones."""
    shipped = _shipped(_shared_memory_bytes())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else shipped.gpu
    found = _read(user_file(gpu))
    if found is None and gpu != shipped.gpu:
        log.info("kernels have the tiles for %s; `vl2 tune` finds those that are fast on this %s", shipped.gpu, gpu)
    return found or shipped


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


def _shared_memory_bytes() -> int | None:
    """What a block of threads can have on this GPU; None: there is no GPU, and no limit."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return int(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]  # missing in torch's hints


def _shipped(shared_memory_bytes: int | None) -> TunedTiles:
    """Those for the most shared memory within this; with less than any of them wants, for the least."""
    files = sorted(_all_shipped(), key=lambda file: file.shared_memory_bytes)
    fitting = [file for file in files if shared_memory_bytes is None or file.shared_memory_bytes <= shared_memory_bytes]
    return fitting[-1] if fitting else files[0]


@functools.cache
def _all_shipped() -> tuple[TunedTiles, ...]:
    folder = importlib.resources.files("vl2") / "assets" / "tiles"
    files = [file for file in folder.iterdir() if file.name.endswith(".json")]
    return tuple(_parse(file.read_text(encoding="utf-8"), str(file)) for file in files)


def _read(path: Path) -> TunedTiles | None:
    return _parse(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else None


def _parse(text: str, source: str) -> TunedTiles:
    try:
        return TunedTiles(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise SetupError(f"{source} holds no tiles ({error}); delete it, or run `vl2 tune` again") from None
