"""A checkpoint folder in the official format: which tensors it holds, and their bytes.

Shards are read with plain reads into one small reused buffer, not memory-mapped: mapped pages count as memory of the
process (and of its container), so a mapped load would hold the weights twice.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vl2.core.errors import CheckpointError
from vl2.core.model_config import ModelConfig, parse_model_config

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
BYTES_PER_ELEMENT = {
    "F64": 8,
    "F32": 4,
    "BF16": 2,
    "F16": 2,
    "F8_E4M3": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
}
MAX_HEADER_BYTES = 100 * 2**20
UNUSED_PREFIX = "vision.attn_pool."
"""Of tensors that official checkpoints hold and nothing computes with."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: bytes `start : start + num_bytes` of `file`. `dtype` is spelled BF16, F32 …"""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    num_bytes: int


def read_json(path: Path) -> dict[str, Any]:
    """Raises: CheckpointError when the file is missing or no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is {path.parent} a DeepSeek-VL2 checkpoint?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def read_model_config(folder: Path) -> ModelConfig:
    """Raises: CheckpointError."""
    config = parse_model_config(read_json(folder / "config.json"))
    if config.quantization is not None and config.quantization.method == "gptq":  # which linears, only tensors tell
        words = [name for name in list_tensors(folder) if name.endswith(".qweight")]
        linears = frozenset(name.removesuffix(".qweight") for name in words)
        return replace(config, quantization=replace(config.quantization, only=linears))
    return config


def list_tensors(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a checkpoint by name, with every shard's header checked against its size.

    Raises: CheckpointError for a missing or truncated shard, a broken header, or an index that does not match.
    """
    if not (folder / INDEX_FILE).exists():
        if not (folder / SINGLE_FILE).exists():
            raise CheckpointError(f"{folder} has neither {INDEX_FILE} nor {SINGLE_FILE}; is the download complete?")
        return {info.name: info for info in read_header(folder / SINGLE_FILE)}
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{folder / INDEX_FILE} has no weight_map")
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"{folder / INDEX_FILE} names a shard outside its folder: {shard!r}")
        for info in read_header(folder / shard):
            if weight_map.get(info.name) == shard:
                tensors[info.name] = info
    absent = [name for name in weight_map if name not in tensors]
    if absent:
        raise CheckpointError(
            f"{folder}: {len(absent)} tensors of the index are not in their shard, first {absent[0]} "
            f"in {weight_map[absent[0]]}; download it again"
        )
    return tensors


def read_header(path: Path) -> list[TensorInfo]:
    """The header of one safetensors file (https://github.com/huggingface/safetensors#format)."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(
                    f"{path} is no safetensors file or is truncated ({size} bytes); download it again"
                )
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; download the checkpoint again") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} has a broken header ({error}); download it again") from None
    infos = [_tensor_info(path, name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"]
    end = max((info.start + info.num_bytes for info in infos), default=8 + length)
    if end > size:
        raise CheckpointError(f"{path} is truncated: {size} bytes, but its tensors end at {end}; download it again")
    return infos


def _tensor_info(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    try:
        dtype, shape = entry["dtype"], tuple(int(length) for length in entry["shape"])
        begin, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: the header entry of {name} is malformed; download it again") from None
    if dtype not in BYTES_PER_ELEMENT:
        raise CheckpointError(f"{path}: {name} has type {dtype}, which vl2 does not read")
    num_bytes = math.prod(shape) * BYTES_PER_ELEMENT[dtype]
    if begin < 0 or end - begin != num_bytes:
        raise CheckpointError(f"{path}: {name} {list(shape)} {dtype} needs {num_bytes} bytes but has {end - begin}")
    return TensorInfo(name, dtype, shape, path, data_start + begin, num_bytes)


class BlockReader:
    """Reads tensors block by block through one buffer, so that a load needs no second copy of anything large."""

    def __init__(self, max_block_bytes: int = 16 * 2**20) -> None:
        self._buffer = bytearray(max_block_bytes)
        self._path: Path | None = None
        self._fd = -1

    def __enter__(self) -> BlockReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def blocks(self, info: TensorInfo) -> Iterator[tuple[int, memoryview]]:
        """(first byte within the tensor, bytes); a block is only valid until the next one is asked for."""
        self._open(info.file)
        position = 0
        while position < info.num_bytes:
            block = memoryview(self._buffer)[: min(len(self._buffer), info.num_bytes - position)]
            if os.preadv(self._fd, [block], info.start + position) != len(block):
                raise CheckpointError(f"{info.file} ended while {info.name} was read; download it again")
            yield position, block
            position += len(block)

    def read(self, info: TensorInfo, first: int = 0, num_bytes: int | None = None) -> bytearray:
        """A copy of some bytes of a tensor, or of all."""
        self._open(info.file)
        data = bytearray(info.num_bytes - first if num_bytes is None else num_bytes)
        if os.preadv(self._fd, [data], info.start + first) != len(data):
            raise CheckpointError(f"{info.file} ended while {info.name} was read; download it again")
        return data

    def _open(self, path: Path) -> None:
        if path != self._path:
            self._close()
            self._fd, self._path = os.open(path, os.O_RDONLY), path

    def _close(self) -> None:
        if self._path is not None:
            os.close(self._fd)
            self._path = None
