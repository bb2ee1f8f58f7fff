"""vl2 selfcheck: nano passes; random, damaged and mixed-up weights do not."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from golden_cases import load_variant
from vl2.cli import execute

FLAGS = ("--device", "cpu", "--dtype", "float32", "--max-sequences", "4")


@pytest.fixture
def random_weights(tmp_path: Path) -> Path:
    return Path(shutil.copytree(load_variant("mla-qlora").folder, tmp_path / "random"))


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit code, and check → (status, detail)."""
    code = execute(["selfcheck", *args, *FLAGS])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ", 2) for line in lines]
    return code, {name: (status, detail) for name, status, detail in rows}


def shard_with(folder: Path, name: str) -> tuple[Path, dict[str, torch.Tensor]]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    path = folder / index["weight_map"][name]
    return path, load_file(path)


def test_nano_sees_all_four(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    code, checks = run(capsys, "nano", "--output", str(report))
    assert code == 0 and checks["answers"] == ("ok", "4 of 4 name colour and shape")
    assert checks["yellow star"] == ("ok", "yellow star")
    assert "nano passed" in report.read_text() and str(Path.home()) not in report.read_text()


def test_random_weights_are_finite_but_see_nothing(capsys: pytest.CaptureFixture[str], random_weights: Path) -> None:
    code, checks = run(capsys, str(random_weights))
    assert code == 1 and checks["logits"][0] == "ok"
    assert checks["answers"][0] == "failed"


def test_weights_with_nan_are_found(capsys: pytest.CaptureFixture[str], random_weights: Path) -> None:
    path, tensors = shard_with(random_weights, "language.model.norm.weight")
    tensors["language.model.norm.weight"][0] = math.nan
    save_file(tensors, path)
    code, checks = run(capsys, str(random_weights))
    assert code == 1 and checks["logits"][0] == "failed"


def test_a_misshapen_tensor_is_named(capsys: pytest.CaptureFixture[str], random_weights: Path) -> None:
    path, tensors = shard_with(random_weights, "language.model.norm.weight")
    tensors["language.model.norm.weight"] = torch.ones(7)
    save_file(tensors, path)
    code, checks = run(capsys, str(random_weights))
    status, detail = checks["error"]
    assert code == 1 and status == "failed"
    assert "language.model.norm.weight has shape [7]" in detail


def test_a_broken_config_is_named(capsys: pytest.CaptureFixture[str], random_weights: Path) -> None:
    (random_weights / "config.json").write_text('{"model_type": "llama"}')
    code, checks = run(capsys, str(random_weights))
    assert code == 1 and "model_type is 'llama'" in checks["error"][1]
