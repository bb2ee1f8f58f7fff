"""Weights and cache in float8: what is rounded, what is kept, what the kernels read, and how near the answers stay."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import interpreter  # noqa: F401  # before Triton is imported anywhere
from tests.quant.checkpoints import write_checkpoint
from tests.quant.test_engine import answer, build, prompts
from vl2.checkpoint.folder import read_model_config
from vl2.core.errors import SetupError
from vl2.core.quantization import WeightScheme, parse_quantization
from vl2.core.quantization_default import with_quantization
from vl2.model import vl2 as model_file
from vl2.model.kv_pool import KVPool
from vl2.model.linear import QuantizedLinear
from vl2.model.moe import QuantizedMoE
from vl2.model.vl2 import DeepseekVL2
from vl2.model.weights import draw_weights, load_weights
from vl2.ops.quantized_weight.codes import dequantize_codes, round_to_nearest
from vl2.ops.saturate import FLOAT8
from vl2.quant.layer import whole_prompt

FP8 = WeightScheme(8, None, is_float=True)
LINEAR = "language.model.layers.1.self_attn.o_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source") / "small")


def load(folder: Path, mode: str) -> DeepseekVL2:
    model = DeepseekVL2(with_quantization(read_model_config(folder), mode), 64, dtype=torch.float32, device="cpu")
    load_weights(model, folder)
    return model


def logits_of(model: DeepseekVL2, kv_dtype: torch.dtype = torch.float32, num_tokens: int = 12) -> torch.Tensor:
    """Of every token of a short text."""
    ids = torch.arange(20, 20 + num_tokens)
    pool = KVPool(model.config.language, 1, 16, dtype=kv_dtype, device="cpu")
    with torch.inference_mode():
        hidden = model.decoder(model.decoder.embed_tokens[ids], whole_prompt(len(ids), torch.device("cpu")), pool)
        return model.decoder.logits(hidden)


def test_on_a_cpu_weights_stand_for_float8_and_the_rest_is_as_it_was(source: Path):
    plain, rounded = (dict(load(source, mode).named_parameters()) for mode in ("auto", "fp8"))
    changed = {name for name in plain if not torch.equal(plain[name], rounded[name])}
    kinds = ("attention.q_proj", "attention.kv_a", "attention.o_proj", "mlp.gate_up", "mlp.down", "mlp.shared")
    assert changed and all(any(kind in name for kind in kinds) for name in changed)
    gate_up = "decoder.layers.1.mlp.gate_up"
    assert torch.equal(rounded[gate_up], dequantize_codes(*round_to_nearest(plain[gate_up], FP8, torch.float32)))
    error = (rounded[gate_up] - plain[gate_up]).norm() / plain[gate_up].norm()
    assert 0.02 < error < 0.03  # three bits of mantissa


@pytest.mark.cpu_only
def test_the_kernels_hold_codes_and_compute_what_they_stand_for(source: Path, monkeypatch: pytest.MonkeyPatch):
    expected = logits_of(load(source, "fp8"), num_tokens=3)
    triton_backend = pytest.importorskip("vl2.ops.triton_backend", reason="Triton is not installed")
    monkeypatch.setattr(model_file, "choose_backend", lambda *_: triton_backend)
    model = load(source, "fp8")
    layer = model.decoder.layers[1]
    assert isinstance(layer.mlp, QuantizedMoE) and isinstance(layer.attention.o_proj, QuantizedLinear)
    assert layer.mlp.gate_up_codes.dtype == FLOAT8 and layer.mlp.gate_up_scales.dtype == torch.float32
    torch.testing.assert_close(logits_of(model, num_tokens=3), expected, atol=1e-4, rtol=1e-4)


def test_random_codes_are_numbers_of_the_wanted_spread(source: Path, monkeypatch: pytest.MonkeyPatch):
    triton_backend = pytest.importorskip("vl2.ops.triton_backend", reason="Triton is not installed")
    monkeypatch.setattr(model_file, "choose_backend", lambda *_: triton_backend)
    model = DeepseekVL2(with_quantization(read_model_config(source), "fp8"), 64, dtype=torch.float32, device="cpu")
    draw_weights(model)
    drawn = triton_backend.quantized_layout.dequantize(model.decoder.layers[1].mlp.experts.down[0])
    assert drawn.isfinite().all() and float(drawn.std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("strategy", ["channel", "tensor"])
def test_a_checkpoint_in_float8_is_computed_with_as_it_is(
    source: Path, tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
):
    folder = write_checkpoint(tmp_path / "c")
    tensors = load_file(folder / "model.safetensors")
    weight = tensors.pop(f"{LINEAR}.weight").float()
    scale = (weight.abs().amax(1, keepdim=True) if strategy == "channel" else weight.abs().max().view(1)) / 448
    tensors |= {f"{LINEAR}.weight": (weight / scale).to(FLOAT8), f"{LINEAR}.weight_scale": scale}
    save_file(tensors, folder / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    group = {"targets": [LINEAR], "weights": {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True}}
    raw["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(raw))
    triton_backend = pytest.importorskip("vl2.ops.triton_backend", reason="Triton is not installed")
    monkeypatch.setattr(model_file, "choose_backend", lambda *_: triton_backend)
    held = load(folder, "auto").decoder.layers[1].attention.o_proj
    assert torch.equal(held.codes.float(), (weight / scale).to(FLOAT8).float())
    assert torch.equal(held.scales[0], scale.flatten().expand(len(weight)))


def test_float8_with_a_scale_for_each_block_is_made_16_bits():
    for method in ({"weight_block_size": [128, 128]}, {}):
        found = parse_quantization({"quantization_config": {"quant_method": "fp8", **method}})
        assert (found.scheme_of("language.a") is None) == bool(method)


def test_a_checkpoint_of_other_bits_is_refused():
    raw = {"quantization_config": {"quant_method": "gptq", "bits": 8, "group_size": 128}}
    config = read_model_config(Path(model_file.__file__).parents[1] / "assets" / "nano")
    with pytest.raises(SetupError, match="--quantization fp8, but this checkpoint is quantised already, to int8"):
        with_quantization(dataclasses.replace(config, quantization=parse_quantization(raw)), "fp8")


def test_the_cache_in_float8_takes_half_and_changes_little(source: Path):
    model = load(source, "auto")
    exact, rounded = logits_of(model), logits_of(model, FLOAT8)
    assert not torch.equal(exact, rounded)
    assert float((rounded - exact).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize("changes", [{"mode": "fp8"}, {"mode": "auto", "kv_dtype": "fp8"}], ids=str)
def test_nano_answers_nearly_the_same(changes: dict):
    exact, rounded = build("auto", dtype="float32"), build(dtype="float32", **changes)
    first, other = ([rows[0] for rows in answer(engine, prompts(engine))] for engine in (exact, rounded))
    assert [token for token, _ in other] == [token for token, _ in first]
    torch.testing.assert_close([p for _, p in other], [p for _, p in first], atol=0.2, rtol=0)
    assert rounded.runner.fingerprint != exact.runner.fingerprint  # prefixes of the one are none of the other
