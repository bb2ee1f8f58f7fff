"""vl2 export: a folder that runs without PyTorch, and one line about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import Result
from vl2.edge.bundle import read_manifest

Run = Callable[..., Result]


def test_it_says_what_was_written_where_and_under_which_licence(vl2: Run, tmp_path: Path) -> None:
    result = vl2("export", "nano", str(tmp_path / "out"), "--precision", "int8")
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"nano is in {tmp_path / 'out'}: int8, ")
    assert result.stdout.endswith("licence of the weights: Apache-2.0\n")
    assert read_manifest(tmp_path / "out").precision == "int8"


def test_what_cannot_be_exported_is_one_line(vl2: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    result = vl2("export", "nano", str(tmp_path))
    assert result.code == 2
    assert result.stderr == f"error: {tmp_path} exists and is no exported model; name a new folder\n"
    assert "is not one of" in vl2("export", "nano", str(tmp_path / "out"), "--precision", "int4").stderr
