"""How much smaller: the sums of bench/sizes.py against a file, and at the real shapes."""

import sys
from pathlib import Path

import pytest

from tests.quant.checkpoints import write_checkpoint
from vl2.checkpoint.folder import list_tensors, read_model_config
from vl2.cli import execute

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import shapes
from sizes import sizes


@pytest.mark.parametrize(("shape", "language"), [("tiny", 0.65), ("small", 0.71), ("base", 0.71)])
def test_four_bits_at_the_real_shapes(tmp_path: Path, shape: str, language: float):
    found = sizes(read_model_config(shapes.write(shape, tmp_path / shape)))
    assert 1 - found.linears[1] / found.linears[0] >= 0.74
    assert 1 - found.language[1] / found.language[0] >= language


def test_a_file_has_the_bytes_that_are_foretold(tmp_path: Path):
    source, out = write_checkpoint(tmp_path / "c"), tmp_path / "out"
    assert execute(["quantize", str(source), str(out), "--method", "rtn", "--device", "cpu"]) == 0
    found = sizes(read_model_config(source))
    assert sum(info.num_bytes for info in list_tensors(source).values()) == found.checkpoint[0]
    assert sum(info.num_bytes for info in list_tensors(out).values()) == found.checkpoint[1]
