"""`vl2 quantize` as a run: calibration, experts that see too little, a kill at any layer, and what people get wrong."""

import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.quant.checkpoints import draw_pictures, write_checkpoint
from vl2.checkpoint.folder import BlockReader, list_tensors, read_model_config
from vl2.cli import execute
from vl2.cli.quantize import command
from vl2.core.config import ProcessorConfig
from vl2.core.errors import SetupError
from vl2.core.quantization import WeightScheme
from vl2.model.stored import WeightReader, group_tensors
from vl2.model.vl2 import DeepseekVL2
from vl2.model.weights import load_weights
from vl2.ops.quantized_weight.codes import dequantize_codes, round_to_nearest
from vl2.processing.processor import Processor
from vl2.quant.calibration import MIN_CONVERSATIONS, VISION_WEIGHT, read_calibration, read_conversations
from vl2.quant.compare import compare_logits
from vl2.quant.gptq import Hessian, quantize_matrix
from vl2.quant.output import OutputFolder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source") / "small")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("pictures") / "all", MIN_CONVERSATIONS)


def arguments(source: Path, out: Path, pictures: Path, *more: str) -> list[str]:
    return [str(source), str(out), "--calibration", str(pictures), "--device", "cpu", "--dtype", "float32", *more]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def gptq(source: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gptq") / "out"
    assert run_alone("-m", "vl2", "quantize", *arguments(source, out, pictures)) == 0
    return out


def run_alone(*words: str) -> int:
    """In a process of its own, where no other test has chosen threads or instructions, which sums depend on."""
    return subprocess.run([sys.executable, *words], check=False, capture_output=True).returncode


# ---- one matrix


@pytest.mark.parametrize("scheme", [WeightScheme(4, 128), WeightScheme(4, 32), WeightScheme(8, None)], ids=str)
def test_gptq_changes_results_less_than_rounding(scheme: WeightScheme):
    torch.manual_seed(0)
    mixing = torch.randn(256, 256) / 16
    x, weight = torch.randn(1024, 256) @ mixing, torch.randn(96, 256)
    hessian = Hessian(256, "cpu")
    hessian.add(x, torch.ones(1024))

    def error(rounded: tuple[torch.Tensor, torch.Tensor]) -> float:
        return float((x @ (dequantize_codes(*rounded) - weight).T).norm())

    found = quantize_matrix(weight, hessian.curvature(), scheme, torch.float32)
    assert error(found) < 0.8 * error(round_to_nearest(weight, scheme, torch.float32))


def test_gptq_takes_inputs_that_are_always_zero_and_fewer_tokens_than_inputs():
    x = torch.randn(20, 128)
    x[:, 5] = 0
    hessian = Hessian(128, "cpu")
    hessian.add(x, torch.ones(20))
    codes, scales = quantize_matrix(torch.randn(8, 128), hessian.curvature(), WeightScheme(4, 128), torch.bfloat16)
    assert bool(torch.isfinite(scales).all()) and codes.abs().max() <= 8


def test_a_linear_that_nobody_watched_is_no_reason_to_round_blindly():
    with pytest.raises(AssertionError, match="nobody saw"):
        Hessian(4, "cpu").curvature()


def test_a_hessian_weighs_rows():
    x, weights = torch.randn(7, 4), torch.rand(7)
    hessian = Hessian(4, "cpu")
    hessian.add(x[:3], weights[:3])
    hessian.add(x[3:], weights[3:])
    torch.testing.assert_close(hessian.sum / hessian.total, (x.T * weights) @ x / weights.sum())


# ---- calibration data


def test_unreadable_pictures_are_named_and_skipped(source: Path, pictures: Path, tmp_path: Path):
    for path in pictures.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "notes.pdf").write_bytes(b"not looked at")
    processor = Processor(source, read_model_config(source), ProcessorConfig())
    samples, skipped = read_calibration(tmp_path, processor, max_samples=100, max_tokens=4096)
    assert len(skipped) == 1 and "broken.png" in skipped[0]
    assert sum(bool(sample.prompt.spans) for sample in samples) == MIN_CONVERSATIONS
    assert any(not sample.prompt.spans for sample in samples)  # and texts, always
    (tmp_path / "0.png").unlink()
    with pytest.raises(SetupError, match=f"has {MIN_CONVERSATIONS - 1} usable conversations"):
        read_calibration(tmp_path, processor, max_samples=100, max_tokens=4096)


def test_picture_tokens_count_less_than_text(source: Path, pictures: Path):
    processor = Processor(source, read_model_config(source), ProcessorConfig())
    sample = read_conversations(pictures, processor, max_samples=1, max_tokens=4096)[0][0]
    (span,), weights = sample.prompt.spans, sample.weights("cpu")
    is_picture = torch.zeros(len(weights), dtype=torch.bool)
    is_picture[span.start : span.start + span.length] = True
    assert torch.equal(weights, torch.where(is_picture, torch.tensor(VISION_WEIGHT), torch.tensor(1.0)))


def test_a_file_of_questions_and_answers(source: Path, pictures: Path, tmp_path: Path):
    lines = [
        {"image": "0.png", "question": "What is it?", "answer": "noise"},
        {"pictures": ["1.png", "2.png"], "turns": [["Which is blue?", "the first"], ["Sure?", "yes"]]},
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    processor = Processor(source, read_model_config(source), ProcessorConfig())
    samples, skipped = read_conversations(file, processor, pictures=pictures, max_samples=9, max_tokens=4096)
    assert [len(sample.prompt.spans) for sample in samples] == [1, 2] and not skipped
    file.write_text('{"turns": "?"}')
    with pytest.raises(SetupError, match="line 1"):
        read_conversations(file, processor, max_samples=9, max_tokens=4096)


# ---- a run


def test_every_expert_is_counted_and_those_that_saw_little_are_rounded(source, pictures, tmp_path, caplog):
    out = tmp_path / "out"
    with caplog.at_level(logging.WARNING):
        CliRunner().invoke(
            command, arguments(source, out, pictures, "--expert-floor", "1000000"), catch_exceptions=False
        )
    layers = json.loads((out / "quantization.report.json").read_text())["layers"]
    assert [len(layer["tokens_per_expert"]) for layer in layers] == [0, 4, 4]
    assert [layer["rounded_to_nearest"] for layer in layers] == [[], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert "experts 0, 1, 2, 3 saw fewer than 1000000 tokens" in caplog.text
    name = "language.model.layers.2.mlp.experts.3.down_proj.weight"
    with BlockReader() as blocks:
        found = WeightReader(blocks, read_model_config(out).quantization).dense(
            group_tensors(list_tensors(out).values())[name]
        )
        weight = WeightReader(blocks, None).tensor(list_tensors(source)[name])
    assert torch.equal(found, dequantize_codes(*round_to_nearest(weight, WeightScheme(4, 128), torch.bfloat16)))


def test_gptq_is_nearer_to_the_original_than_rounding(source: Path, gptq: Path, pictures: Path):
    processor = Processor(source, read_model_config(source), ProcessorConfig())
    samples = read_conversations(pictures, processor, max_samples=4, max_tokens=4096)[0]
    options = dict(dtype=torch.float32, device=torch.device("cpu"))
    rtn = gptq.parent / "rtn"
    CliRunner().invoke(command, [str(source), str(rtn), "--method", "rtn"], catch_exceptions=False)
    ours, theirs = (compare_logits(folder, source, samples, **options) for folder in (gptq, rtn))
    assert ours.num_tokens == theirs.num_tokens > 0
    assert 0 < ours.kl < theirs.kl
    assert compare_logits(source, source, samples, **options).kl == pytest.approx(0, abs=1e-6)


KILL = """
import os, signal, sys
from vl2.cli import execute
from vl2.quant import output
plain, left = output._make_durable, int(sys.argv.pop(1))
def dies(partial, target):
    global left
    if partial.name.startswith("model-"):
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)  # what is written has no name yet
        left -= 1
    plain(partial, target)
output._make_durable = dies
sys.exit(execute(sys.argv[1:]))
"""


@pytest.mark.parametrize("layer", [0, 2, 3])  # the last one is what lies in no layer
def test_a_killed_run_goes_on_to_the_same_bytes(source: Path, gptq: Path, pictures: Path, tmp_path: Path, layer: int):
    out = tmp_path / "out"
    words = ["quantize", *arguments(source, out, pictures)]
    assert run_alone("-c", KILL, str(layer), *words) == -9
    assert len(list(out.glob("model-*.safetensors"))) == layer and not (out / "config.json").exists()
    assert run_alone("-m", "vl2", *words) == 0
    expected = digests(gptq)
    assert {name: digest for name, digest in digests(out).items() if name in expected} == expected


def test_the_licence_goes_along(source: Path, tmp_path: Path):
    folder = write_checkpoint(tmp_path / "c")
    (folder / "LICENSE").write_text("You agree not to use it for harm.")
    (folder / "README.md").write_text("---\nlicense: other\n---\n# A model\nUse restrictions apply.\n")
    out = tmp_path / "out"
    CliRunner().invoke(command, [str(folder), str(out), "--method", "rtn"], catch_exceptions=False)
    assert (out / "LICENSE").read_text() == "You agree not to use it for harm."
    card = (out / "README.md").read_text()
    assert "Use restrictions apply." in card and "license: other" in card and "vl2 quantize" in card


def test_the_quantised_model_loads(gptq: Path):
    model = DeepseekVL2(read_model_config(gptq), 64, dtype=torch.bfloat16, device="cpu")
    load_weights(model, gptq)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--method gptq needs --calibration"),
        (["--method", "rtn", "--occupied"], "is not empty"),
        (["--method", "rtn", "--done"], "holds a checkpoint already"),
    ],
)
def test_what_people_get_wrong(source: Path, tmp_path: Path, capsys, words: list[str], message: str):
    out = tmp_path / "out"
    for flag, file in (("--occupied", "thesis.txt"), ("--done", "config.json")):
        if flag in words:
            words = [word for word in words if word != flag]
            out.mkdir()
            (out / file).write_text("{}")
    assert execute(["quantize", str(source), str(out), "--device", "cpu", *words]) == 2
    assert message in capsys.readouterr().err


def test_another_runs_folder_is_left_alone(source: Path, gptq: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    OutputFolder(out, {"method": "rtn", "bits": 8}, 4)
    assert execute(["quantize", str(source), str(out), "--method", "rtn"]) == 2
    assert "holds a run of other settings" in capsys.readouterr().err
    assert execute(["quantize", str(gptq), str(tmp_path / "again"), "--method", "rtn"]) == 2
    assert "is quantised already" in capsys.readouterr().err
