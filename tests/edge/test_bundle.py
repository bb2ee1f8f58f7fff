"""What `vl2 export` writes, and how a bundle that is not what was written is found out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from golden_cases import load_variant
from tests.edge.conftest import NANO, Exported
from tests.edge.steps import open_network
from vl2.checkpoint.folder import read_model_config
from vl2.core.errors import CheckpointError, SetupError
from vl2.edge import bundle as bundles
from vl2.edge.bundle import check_files, describe, read_manifest
from vl2.edge.export import OFFICIAL_LICENCE, export, licence_of
from vl2.edge.home import bundle_of
from vl2.edge.weights import Weights


@pytest.fixture
def copy(exported: Exported, tmp_path: Path) -> Path:
    """A bundle to do harm to."""
    return Path(shutil.copytree(exported("mha-greedy"), tmp_path / "bundle"))


def test_the_manifest_tells_hashes_source_and_licence(exported: Exported) -> None:
    folder = exported("nano")
    manifest = read_manifest(folder)
    assert (manifest.source, manifest.precision, manifest.licence) == ("nano", "fp32", "Apache-2.0")
    assert set(manifest.files) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    for name, entry in manifest.files.items():
        assert entry.sha256 == hashlib.sha256((folder / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", ["mha-greedy", "mla-extra"])
def test_graphs_are_valid_and_their_weights_lie_outside(name: str, precision: str, exported: Exported) -> None:
    """ONNX's own checker, with inferred shapes; protobuf's limit of 2 GB concerns no weight."""
    folder = exported(name, precision)
    for graph in bundles.GRAPHS:
        onnx.checker.check_model(str(folder / f"{graph}.onnx"), full_check=True)
        weights = onnx.load(str(folder / f"{graph}.onnx"), load_external_data=False).graph.initializer
        assert all(w.data_location == TensorProto.EXTERNAL or w.ByteSize() < 1000 for w in weights)
        assert {w.external_data[0].value for w in weights if w.external_data} <= {f"{graph}.onnx.data"}


def test_progress_is_told_to_the_end(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    export(load_variant("mha-greedy").folder, tmp_path / "out", on_progress=lambda *done: told.append(done))
    assert told == sorted(told) and told[-1][0] == told[-1][1] > 0


def test_an_export_that_fails_leaves_nothing_and_what_is_there_stays(tmp_path: Path, exported: Exported) -> None:
    broken = Path(shutil.copytree(load_variant("mha-greedy").folder, tmp_path / "ckpt"))
    raw = json.loads((broken / "config.json").read_text())
    raw["language_config"]["num_hidden_layers"] += 1
    (broken / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"lacks the tensor language\.model\.layers"):
        export(broken, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt"]
    with pytest.raises(SetupError, match="is no exported model; name a new folder"):
        export(load_variant("mha-greedy").folder, broken)
    with pytest.raises(SetupError, match="is an exported model already"):
        export(exported("mha-greedy"), tmp_path / "out")


def test_weights_that_are_quantised_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(read_model_config(load_variant("mha-greedy").folder), quantization=object())
    monkeypatch.setattr("vl2.edge.export.read_model_config", lambda folder: config)
    with pytest.raises(SetupError, match="are quantised already; export the checkpoint they were made from"):
        export(load_variant("mha-greedy").folder, tmp_path / "out")


def test_fewer_layers_than_the_file_has_are_an_error(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(load_variant("mha-greedy").folder, tmp_path / "ckpt"))
    raw = json.loads((folder / "config.json").read_text())
    raw["language_config"]["num_hidden_layers"] -= 1
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"unknown tensors, first language\.model\.layers"):
        export(folder, tmp_path / "out")


def test_a_weight_that_lies_the_other_way_is_refused(tmp_path: Path) -> None:
    save_file({"weight": np.zeros((2, 3), np.float32)}, tmp_path / "model.safetensors")
    weights = Weights(tmp_path)
    with pytest.raises(CheckpointError, match=r"weight has shape \[2, 3\], but config.json asks for \[3, 2\]"):
        weights.get("weight", 3, 2)
    assert weights.get("weight", 2, 3).shape == (2, 3)


def test_licences_are_told_as_the_checkpoint_tells_them(tmp_path: Path) -> None:
    assert licence_of(tmp_path, "tiny") == licence_of(tmp_path, "deepseek-ai/deepseek-vl2") == OFFICIAL_LICENCE
    assert licence_of(tmp_path, "mine").startswith("unknown")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    assert licence_of(tmp_path, "mine") == "mit"
    (tmp_path / "LICENSE").write_text("\nSome Licence\n")
    assert licence_of(tmp_path, "mine") == "see LICENSE of mine: Some Licence"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "vision.onnx.data has [0-9]+ bytes instead of"),
        (lambda path: flip_a_byte(path), "vision.onnx.data was changed since it was exported"),
        (lambda path: path.unlink(), "vision.onnx.data is missing"),
        (lambda path: (path.parent / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda path: (path.parent / "manifest.json").unlink(), "has no manifest.json; make one with `vl2 export`"),
        (lambda path: set_version(path.parent, 99), "is of another version of vl2"),
    ],
)
def test_damage_is_told_with_what_to_do(harm, message: str, copy: Path) -> None:
    harm(copy / "vision.onnx.data")
    with pytest.raises(SetupError, match=message):
        open_network(copy)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def set_version(folder: Path, version: int) -> None:
    raw = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(raw | {"version": version}))


def test_of_large_files_samples_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "SAMPLE_BYTES", 64)
    monkeypatch.setattr(bundles, "NUM_SAMPLES", 8)
    path = tmp_path / "large"
    path.write_bytes(struct.pack("<1000I", *range(1000)))
    before = describe(path).sample
    for position in (0, 3999):
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        (tmp_path / "other").write_bytes(data)
        assert describe(tmp_path / "other").sample != before
    assert describe(path).sample == before


def test_an_operator_that_onnxruntime_lacks_is_one_line(copy: Path) -> None:
    node = helper.make_node("Teleport", ["tiles"], ["features"], domain="com.example")
    value = helper.make_tensor_value_info("tiles", TensorProto.FLOAT, ["N"])
    out = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph([node], "g", [value], [out])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(copy / "vision.onnx"))
    refresh_manifest(copy)
    with pytest.raises(
        SetupError, match=r"cannot load .*vision.onnx: .*Teleport.*; install a newer onnxruntime"
    ) as told:
        open_network(copy)
    assert "\n" not in str(told.value)


def refresh_manifest(folder: Path) -> None:
    manifest = read_manifest(folder)
    bundles.write_manifest(
        folder,
        precision=manifest.precision,
        source=manifest.source,
        weights=manifest.weights,
        licence=manifest.licence,
        vl2=manifest.vl2,
        num_parameters=manifest.num_parameters,
    )


def test_a_checkpoint_is_exported_once_and_again_when_its_weights_change(tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(load_variant("mha-greedy").folder, tmp_path / "ckpt"))
    first = bundle_of(checkpoint, "fp32")
    written_ns = (first / "manifest.json").stat().st_mtime_ns
    assert bundle_of(checkpoint, "fp32") == first
    assert (first / "manifest.json").stat().st_mtime_ns == written_ns, "nothing to do"
    old = read_manifest(first)
    shard = next(checkpoint.glob("*00001-of*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-2] ^= 0x10
    shard.write_bytes(data)
    assert read_manifest(bundle_of(checkpoint, "fp32")).weights != old.weights
    flip_a_byte(first / "decoder.onnx.data")
    check_files(again := bundle_of(checkpoint, "fp32"), read_manifest(again))
    assert bundle_of(first, "int8") == first, "an exported model is taken as it is"


def test_nano_in_int8_is_small_and_close(exported: Exported) -> None:
    exact, small = exported("nano"), exported("nano", "int8")
    size = {folder: sum(path.stat().st_size for path in folder.glob("*.data")) for folder in (exact, small)}
    assert size[small] < 0.45 * size[exact]
    tile = np.zeros((1, 384, 384, 3), np.uint8)
    tile[:, 100:250, 80:300, 1] = 255
    near, far = open_network(small).encode_tiles(tile), open_network(exact).encode_tiles(tile)
    assert np.abs(near - far).mean() < 0.05 * far.std()


def test_the_source_itself_is_untouched(exported: Exported) -> None:
    exported("nano")
    assert not (NANO / "manifest.json").exists()
