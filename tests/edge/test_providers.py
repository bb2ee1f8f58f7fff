"""Where ONNX Runtime computes, and the engines that it builds for a device."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import onnx
import pytest

from golden_cases import load_variant
from tests.edge.conftest import Exported
from tests.edge.steps import build_engine
from vl2.core.config import EngineConfig
from vl2.core.errors import SetupError
from vl2.edge.bundle import read_manifest
from vl2.edge.engine_cache import EngineCache
from vl2.edge.providers import NAMES, choose_providers
from vl2.edge.tensorrt import engine_graph
from vl2.engine.step_runner import choose_engine

ALL = list(NAMES.values())


def names(options: list) -> list[str]:
    return [name.removesuffix("ExecutionProvider") for name, _ in options]


def test_the_best_of_what_is_installed_is_taken() -> None:
    engines = Path("/engines")
    assert choose_providers("auto", [NAMES["cpu"]], engines, 384).name == "cpu"
    assert choose_providers("auto", [NAMES["cuda"], NAMES["cpu"]], engines, 384).name == "cuda"
    best = choose_providers("auto", ALL, engines, 384)
    assert names(best.vision) == ["Tensorrt", "CUDA", "CPU"]
    assert names(best.decoder) == ["CUDA", "CPU"] and best.device == "cuda"
    assert best.vision[0][1]["trt_engine_cache_path"] == "/engines"
    assert best.vision[0][1]["trt_profile_max_shapes"] == "tiles:10x384x384x3"


def test_asking_for_what_is_not_there_is_an_error(exported: Exported) -> None:
    with pytest.raises(
        SetupError, match=r"--provider tensorrt, but this onnxruntime has only .*; install onnxruntime-gpu"
    ):
        choose_providers("tensorrt", [NAMES["cpu"]], Path("/engines"), 384)
    with pytest.raises(SetupError, match="--provider cuda, but this onnxruntime has only"):
        build_engine(exported("mha-greedy"), provider="cuda")
    with pytest.raises(SetupError, match="--device cpu and --provider cuda contradict"):
        build_engine(exported("mha-greedy"), provider="cuda", device="cpu")


def test_options_that_onnxruntime_has_not_are_refused(exported: Exported) -> None:
    bundle = exported("mha-greedy")
    for changes, message in (
        ({"deterministic": True}, "--deterministic is not available with --engine onnx"),
        ({"random_weights": True}, "--random-weights is not available"),
        ({"dtype": "bfloat16"}, "--dtype bfloat16 is not available with --engine onnx"),
        ({"dtype": "float16"}, "was exported to fp32; leave --dtype and --quantization out"),
        ({"quantization": "int8"}, "was exported to fp32; leave --dtype and --quantization out"),
        ({"quantization": "int4"}, "--quantization int4 is not available with --engine onnx; use int8"),
        ({"kv_cache_tokens": 100}, "room for 96 tokens by --kv-cache-tokens, but one sequence may take"),
    ):
        with pytest.raises(SetupError, match=message):
            build_engine(bundle, **changes)
    with pytest.raises(SetupError, match="is an exported model, which PyTorch does not read"):
        build_engine(bundle, engine="torch")


def test_a_checkpoint_runs_in_the_format_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = load_variant("mha-greedy").folder
    assert build_engine(checkpoint, dtype="float16").info.dtype == "float16"
    monkeypatch.setattr("vl2.engine.onnx_runner.has_vnni", lambda: False)
    assert build_engine(checkpoint, quantization="int8").info.dtype == "int8"
    assert ("lacks VNNI" in caplog.text) == (platform.machine() == "x86_64")


def test_the_engine_is_chosen_by_what_is_there(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, checkpoint, installed = exported("mha-greedy"), Path("/checkpoint"), {"torch", "onnxruntime"}
    monkeypatch.setattr("vl2.engine.step_runner.find_spec", lambda name: name if name in installed else None)
    assert choose_engine(bundle, EngineConfig()) == "onnx"
    assert choose_engine(checkpoint, EngineConfig()) == "torch"
    installed.discard("torch")
    assert choose_engine(checkpoint, EngineConfig()) == "onnx"
    with pytest.raises(SetupError, match=r"PyTorch is not installed; install vl2\[torch\]"):
        choose_engine(checkpoint, EngineConfig(engine="torch"))
    installed.discard("onnxruntime")
    with pytest.raises(SetupError, match=r"install vl2\[edge\]"):
        choose_engine(bundle, EngineConfig())


def test_built_engines_are_used_only_when_they_are_whole(tmp_path: Path) -> None:
    """As after a crash while building, after damage, and with another key: the folder is then empty for new ones."""
    cache = EngineCache(tmp_path, b"weights and versions")
    assert not cache.open()
    (cache.folder / "tower.engine").write_bytes(b"built for minutes")
    assert not cache.open() and not list(cache.folder.iterdir()), "the seal was missing"
    (cache.folder / "tower.engine").write_bytes(b"built for minutes")
    cache.seal()
    assert cache.open() and EngineCache(tmp_path, b"weights and versions").open()
    assert not EngineCache(tmp_path, b"other weights").open()
    (cache.folder / "tower.engine").write_bytes(b"built for minutez")
    assert not cache.open(), "it was damaged"
    (cache.folder / "tower.engine").write_bytes(b"anew")
    cache.seal()
    (cache.folder / "second.engine").write_bytes(b"nobody sealed this")
    assert not cache.open()


@pytest.fixture
def half(exported: Exported, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported("mha-greedy", "fp16"), tmp_path / "half"))


def test_the_tensorrt_script_builds_and_notes_what_it_built_from(half: Path, tmp_path: Path) -> None:
    """With a stand-in for trtexec, which does not exist here; its arguments are those of NVIDIA's documentation."""
    trtexec = tmp_path / "trtexec"
    trtexec.write_text(
        "#!/bin/bash\n"
        'for a in "$@"; do [ "${a#--saveEngine=}" = "$a" ] || echo "$*" > "${a#*=}"; done\n'
        "exit ${FAIL:-0}\n"
    )
    trtexec.chmod(0o755)
    script, environment = str(half / "build_tensorrt.sh"), {"PATH": "/usr/bin:/bin", "TRTEXEC": str(trtexec)}
    assert engine_graph(half, read_manifest(half)) is None
    subprocess.run([script], env=environment, check=True, capture_output=True)
    arguments = (half / "vision.engine").read_text().split()
    side = 384
    assert f"--maxShapes=tiles:10x{side}x{side}x3" in arguments and "--fp16" in arguments
    assert engine_graph(half, read_manifest(half)) == half / "vision.engine.onnx"
    onnx.checker.check_model(str(half / "vision.engine.onnx"))
    assert subprocess.run([script], env=environment | {"FAIL": "1"}, check=False, capture_output=True).returncode == 1
    assert not (half / "vision.engine").exists(), "a build that failed leaves no engine"


def test_an_engine_of_other_weights_is_refused(half: Path) -> None:
    (half / "vision.engine").write_bytes(b"an engine")
    for note in (None, "0123abcd"):
        if note is not None:
            (half / "vision.engine.sha256").write_text(note)
        with pytest.raises(
            SetupError, match=r"was built from other weights, or not to its end; run .*build_tensorrt.sh"
        ):
            engine_graph(half, read_manifest(half))


def test_without_trtexec_the_script_says_where_to_get_it(half: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin"}
    run = subprocess.run(
        [str(half / "build_tensorrt.sh")], env=environment, check=False, capture_output=True, text=True
    )
    assert run.returncode == 2 and "install TensorRT" in run.stderr
