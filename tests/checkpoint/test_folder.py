"""Broken checkpoints: each is refused with one line that names the file."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vl2.checkpoint.fingerprint import fingerprint_weights
from vl2.checkpoint.folder import INDEX_FILE, BlockReader, list_tensors, read_json
from vl2.core.errors import CheckpointError

SHARD = "model-00001-of-000001.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, tmp_path / SHARD)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": {"a": SHARD, "b": SHARD}}))
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        list_tensors(folder)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_tensors_are_found_and_read_block_by_block(folder: Path):
    info = list_tensors(folder)["a"]
    assert info.shape == (2, 3) and info.dtype == "F32"
    with BlockReader(max_block_bytes=16) as reader:
        parts = [(position, bytes(block)) for position, block in reader.blocks(info)]
    assert [position for position, _ in parts] == [0, 16]
    assert struct.unpack("<6f", b"".join(part for _, part in parts)) == (0, 1, 2, 3, 4, 5)


def test_a_truncated_shard(folder: Path):
    shard = folder / SHARD
    shard.write_bytes(shard.read_bytes()[:-3])
    assert "truncated" in refusal(folder) and SHARD in refusal(folder)


def test_a_missing_shard(folder: Path):
    (folder / SHARD).unlink()
    assert "is missing" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0notjson!", b"\xff" * 64])
def test_a_shard_that_is_no_safetensors_file(folder: Path, content: bytes):
    (folder / SHARD).write_bytes(content)
    assert SHARD in refusal(folder)


def test_an_index_that_names_a_tensor_the_shard_lacks(folder: Path):
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": SHARD, "c": SHARD}}))
    assert "first c" in refusal(folder)


def test_an_index_that_points_outside_the_folder(folder: Path):
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "../" + SHARD}}))
    assert "outside its folder" in refusal(folder)


def test_a_folder_that_is_no_checkpoint(tmp_path: Path):
    assert "neither" in refusal(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        read_json(tmp_path / "config.json")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux tells them")
def test_a_fingerprint_leaves_no_file_open():
    before = len(list(Path("/proc/self/fd").iterdir()))
    fingerprint_weights(Path(__file__).parents[1] / "golden" / "mla-greedy" / "ckpt")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
