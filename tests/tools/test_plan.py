"""vl2 plan: its sums are the model's and the engine's own, without reading a weight."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from golden_cases import load_variant
from vl2.checkpoint.source import resolve_model
from vl2.cli import execute
from vl2.core.config import EngineConfig, HubOptions
from vl2.core.gpu_memory import GRAPH_BYTES, RUNTIME_BYTES, usable_bytes
from vl2.core.model_config import ModelConfig
from vl2.core.quantization_default import with_quantization
from vl2.engine.runner import Runner
from vl2.model.kv_pool import kv_bytes_per_token
from vl2.model.vl2 import DeepseekVL2
from vl2.tools.plan import Wanted, judge, make_plan
from vl2.tools.plan_devices import DEVICES, GIB, Device, find_devices
from vl2.tools.plan_models import official_config, read_config
from vl2.tools.plan_sizes import count_weights

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "desc_act": False}
VARIANTS = ("mha-greedy", "mla-greedy", "mla-noaux", "mla-qlora", "mla-extra")


def config_of(name: str) -> ModelConfig:
    if name in ("tiny", "small", "base"):
        return official_config(name)
    return read_config(str(folder_of(name)), HubOptions())


def folder_of(name: str) -> Path:
    return resolve_model("nano") if name == "nano" else load_variant(name).folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["tiny", "small", "base", "nano", *VARIANTS])
def test_weights_are_those_of_the_model(name: str, dtype: str) -> None:
    """The model built on the meta device has every parameter's shape and no bytes."""
    config = config_of(name)
    model = DeepseekVL2(config, 16, dtype=getattr(torch, dtype), device="meta")
    assert count_weights(config).num_bytes(dtype) == sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("bits", ["int4", "int8"])
@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_weights_in_few_bits_are_those_of_the_model_on_a_gpu(
    name: str, bits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the layout of the GPU's kernels, which a CPU's is not."""
    triton_backend = pytest.importorskip("vl2.ops.triton_backend")
    monkeypatch.setattr("vl2.model.vl2.choose_backend", lambda *_: triton_backend)
    config = with_quantization(official_config(name), bits)
    model = DeepseekVL2(config, 16, dtype=torch.bfloat16, device="meta")
    planned = count_weights(config).num_bytes("bfloat16", config.quantization)
    assert planned == sum(parameter.nbytes for parameter in model.parameters())


def test_weights_are_those_measured_on_a_gpu() -> None:
    """bench/results/2026-11-25-gpu-h100.jsonl, in bfloat16."""
    assert count_weights(official_config("tiny")).num_bytes("bfloat16") == 6_712_328_416
    assert count_weights(official_config("small")).num_bytes("bfloat16") == 32_273_038_048


@pytest.mark.parametrize("name", ["nano", *VARIANTS])
def test_the_engine_allocates_what_was_planned(name: str) -> None:
    engine = EngineConfig(device="cpu", dtype="float32", max_sequences=4, image_cache_tiles=32)
    plan = make_plan(config_of(name), Device("any", 4 * GIB), Wanted("float32", concurrency=4), engine)
    limited = EngineConfig(
        device="cpu", dtype="float32", max_sequences=4, image_cache_tiles=32, kv_cache_tokens=plan.kv_tokens
    )
    runner = Runner(folder_of(name), limited)
    pool_bytes = sum(layer.nbytes for layer in runner.pool.layers)
    spare_page_bytes = pool_bytes // (runner.pool.num_pages + 1)
    assert runner.weights_bytes == plan.weights_bytes
    assert runner.features.nbytes == plan.features_bytes
    assert runner.pool.num_pages == plan.num_pages and pool_bytes - spare_page_bytes == plan.kv_bytes


def test_fp8_takes_a_byte_a_number() -> None:
    config = official_config("tiny")
    plain, small = (
        make_plan(config, Device("any", 40 * GIB), wanted, EngineConfig())
        for wanted in (Wanted(), Wanted(quantization="fp8", kv_dtype="fp8"))
    )
    assert small.kv_bytes_per_token == kv_bytes_per_token(config.language, torch.float8_e4m3fn)
    assert 2 * small.kv_bytes_per_token == plain.kv_bytes_per_token
    assert plain.weights_bytes / 2 < small.weights_bytes < 0.65 * plain.weights_bytes
    assert small.quantization == "fp8"


def test_a_plan_in_few_bits_names_those_of_the_layers() -> None:
    """The vocabulary's matrix has 8 beside 4."""
    plan = make_plan(official_config("small"), Device("any", 40 * GIB), Wanted(quantization="int4"), EngineConfig())
    assert plan.quantization == "int4"


def test_pages_are_what_the_rest_leaves() -> None:
    plan = make_plan(official_config("small"), Device("any", 40 * GIB), Wanted(), EngineConfig())
    per_page = plan.kv_bytes_per_token * 16
    assert 0 <= plan.usable_bytes - plan.fixed_bytes - plan.pages_by_memory * per_page < per_page
    parts = plan.weights_bytes + plan.features_bytes + plan.vision_bytes + plan.step_bytes
    assert plan.fixed_bytes == parts + RUNTIME_BYTES
    assert plan.num_pages == min(plan.pages_by_memory, 64 * 256)


@pytest.mark.parametrize(
    ("model", "gpu", "wanted", "advice"),
    [
        ("tiny", "L4", Wanted(), ""),
        ("tiny", "L4", Wanted(concurrency=200), "--concurrency 52 fits"),
        ("small", "L40S", Wanted("float32"), "--dtype bfloat16 fits"),
        ("small", "L4", Wanted(), "--quantization int4 fits"),
        ("base", "4090", Wanted("float32"), "--quantization int4 fits"),
        ("tiny", "T4", Wanted(), "too old: kernels need Ampere or later"),
    ],
)
def test_advice_is_the_smallest_change_that_helps(model: str, gpu: str, wanted: Wanted, advice: str) -> None:
    [device] = find_devices(gpu)
    verdict = judge(official_config(model), device, wanted, EngineConfig())
    assert (verdict.fits, verdict.advice) == (not advice, advice)


def test_where_nothing_helps_more_memory_is_advised() -> None:
    verdict = judge(official_config("base"), Device("any", 8 * GIB), Wanted(), EngineConfig())
    assert (verdict.fits, verdict.advice) == (False, "needs more memory")


def test_a_shorter_context_is_advised_when_it_helps() -> None:
    config, engine = official_config("tiny"), EngineConfig()
    whole = make_plan(config, Device("any", 100 * GIB), Wanted(), engine)
    room = whole.fixed_bytes + 3000 * whole.kv_bytes_per_token
    verdict = judge(config, Device("small", room + GRAPH_BYTES), Wanted(), engine)
    assert not verdict.fits and verdict.advice == "--context 2048 fits"


def test_a_card_keeps_room_for_graphs_however_small_it_is() -> None:
    assert usable_bytes(80 * GIB, 0.9) == 72 * GIB
    assert usable_bytes(8 * GIB, 0.9) == 8 * GIB - GRAPH_BYTES < 0.9 * 8 * GIB
    assert usable_bytes(1 * GIB, 0.9) == 0


MEASURED_ON_H100 = {"tiny": 24_565, "small": 41_501, "base": 64_181}  # MiB; bench/results/2026-11-27-plan-h100.jsonl


@pytest.mark.parametrize("name", MEASURED_ON_H100)
def test_the_whole_process_is_what_an_h100_showed(name: str) -> None:
    plan = make_plan(official_config(name), find_devices("H100")[0], Wanted("bfloat16"), EngineConfig())
    assert plan.total_bytes / 2**20 == pytest.approx(MEASURED_ON_H100[name], rel=0.05)


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = execute(["plan", *args])
    return code, *capsys.readouterr()


def test_the_table_names_every_gpu_and_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "base")
    rows = {line.split()[0]: line for line in out.split("what to change\n")[1].splitlines()}
    assert code == 0 and set(rows) == {device.name for device in DEVICES}
    assert "int4" in rows["A100-40GB"] and "yes" in rows["A100-80GB"]
    assert {name for name, row in rows.items() if "measured" in row} == {"H100"}, "where somebody ran base"
    assert "measured" in run(capsys, "small", "--gpu", "h100")[1]


def test_json_has_bytes_and_the_code_says_whether_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "small", "--memory", "24", "--json")
    [device] = json.loads(out)["devices"]
    assert code == 1 and not device["fits"] and device["weights_bytes"] == 32_273_038_048


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--gpu", "H1000"], "--gpu H1000 is not in the list"),
        (["--gpu", "L4", "--memory", "8"], "exclude each other"),
        (["--memory", "0"], "above 0"),
        (["--context", "8192"], "--context is 8192, but must be between 64 and 4096"),
        (["--concurrency", "0"], "--max-sequences is 0"),
    ],
)
def test_wrong_wishes_are_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], args: list[str], problem: str
) -> None:
    code, _, err = run(capsys, "tiny", *args)
    assert code == 2 and problem in err and len(err.splitlines()) == 1


def test_only_config_json_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config: dict[str, Any] = json.loads((folder_of("mla-greedy") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run(capsys, str(tmp_path), "--gpu", "L4")[0] == 0
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": GPTQ}))
    assert "decoder in int4" in run(capsys, str(tmp_path), "--gpu", "T4")[1]


def test_a_plan_of_an_official_model_opens_no_connection(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> Callable[..., object]:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert run(capsys, "tiny")[0] == 0
