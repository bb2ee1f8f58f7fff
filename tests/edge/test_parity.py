"""The exported graphs against the official code, stage by stage and token by token; and against the torch path."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from safetensors.torch import save_file

from golden_cases import VARIANTS, GoldenCase, load_gates, load_variant, load_variants, read_json
from tests.edge.conftest import NANO, Exported
from tests.edge.steps import build_engine, open_network, prompt_logits
from tests.parity.steps import case_prompt, greedy, run_prompt
from tests.parity.test_golden_model import _gate_config
from vl2.checkpoint.folder import read_json as read_settings
from vl2.checkpoint.folder import read_model_config
from vl2.core.config import EngineConfig
from vl2.core.model_config import MoEConfig, parse_model_config
from vl2.core.types import Message
from vl2.edge.graph import DataFile, Graph
from vl2.edge.moe_graph import gate, moe
from vl2.engine.engine import Engine
from vl2.model.vl2 import DeepseekVL2
from vl2.model.weights import destinations, draw_weights, load_weights
from vl2.processing.processor import Processor

CASES = [case for variant in load_variants() for case in variant.cases]
TIGHT, LOOSE = 1e-4, 1e-3


def assert_close(ours: np.ndarray, golden: np.ndarray | None, atol: float) -> None:
    """Where the trimmed set left a tensor out there is nothing to compare."""
    if golden is not None:
        np.testing.assert_allclose(ours, golden, atol=atol, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_features_and_logits_of_a_prompt(case: GoldenCase, exported: Exported) -> None:
    bundle, prompt = exported(case.variant), case_prompt(case)
    if len(prompt.tiles):
        assert_close(open_network(bundle).encode_tiles(prompt.tiles), case.get("projector_out"), TIGHT)
    logits = prompt_logits(bundle, prompt)
    assert_close(logits[-8:], case.get("logits_last8"), LOOSE)
    assert_close(logits, case.get("logits"), LOOSE)
    best = case.get("argmax_all")
    if best is not None:
        assert logits.argmax(-1).tolist() == best.tolist()


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_tokens_are_the_official_ones(name: str, exported: Exported) -> None:
    variant = load_variant(name)
    prompts = {case.name: case_prompt(case) for case in variant.cases}
    golden = {case.name: case.greedy_tokens for case in variant.cases}
    engine = build_engine(exported(name))
    assert token_ids(greedy(engine, prompts)) == golden, "all at once"
    assert token_ids(greedy(engine, prompts, preempt_every=5)) == golden, "after forced preemption"
    chunked = build_engine(exported(name), max_step_tokens=7, max_step_tiles=2)
    assert token_ids(greedy(chunked, prompts)) == golden, "prefill in chunks of 7 tokens"
    penalised = {case.name: case.meta["greedy_tokens_repetition_penalty_1_1"] for case in variant.cases}
    assert token_ids(greedy(engine, prompts, repetition_penalty=1.1)) == penalised


def token_ids(answers: dict[str, list]) -> dict[str, list[int]]:
    return {name: [token_id for token_id, _ in answer] for name, answer in answers.items()}


def test_every_gate_of_the_official_code(tmp_path: Path) -> None:
    """3 methods × 2 scorings × group settings; the selection order is unspecified, so ids are sorted."""
    tensors = load_gates()
    for case in read_json("gates/gates.json")["cases"]:
        own = {name: tensors.get(f"{case['key']}.{name}") for name in ("x", "weight", "bias", "ids", "topk_weight")}
        ids, shares = run_gate(tmp_path, own, _gate_config(case))
        order = ids.argsort(-1)
        ids, shares = np.take_along_axis(ids, order, -1), np.take_along_axis(shares, order, -1)
        if case["negative_corrected_scores"]:
            continue  # ties at 0.0, which the official code leaves open
        assert ids.tolist() == own["ids"].tolist(), case
        np.testing.assert_allclose(shares, own["topk_weight"], atol=1e-5, rtol=1e-4)


def run_gate(folder: Path, tensors: dict, config) -> tuple[np.ndarray, np.ndarray]:
    weights = SimpleNamespace(get=lambda name, *shape: tensors["bias" if name.endswith("bias") else "weight"])
    with DataFile(folder / "gate.onnx.data") as data:
        g = Graph("gate", data, "fp32")
        width = tensors["x"].shape[1]
        ids, shares = gate(g, weights, "gate", g.input("x", onnx.TensorProto.FLOAT, ("T", width)), config, width)
        g.output(g.op("Identity", ids), "ids", onnx.TensorProto.INT64, ("T", config.num_active))
        g.output(g.op("Identity", shares), "shares", onnx.TensorProto.FLOAT, ("T", config.num_active))
    onnx.save(g.model({}), str(folder / "gate.onnx"))
    session = InferenceSession(str(folder / "gate.onnx"), providers=["CPUExecutionProvider"])
    return session.run(["ids", "shares"], {"x": tensors["x"]})


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_experts_that_no_token_chose_are_not_read(tmp_path: Path, precision: str) -> None:
    """Their weights are not numbers, and the result is one: multiplying them by zero would not do."""
    config = MoEConfig(8, 2, 6, 12, "greedy", "softmax", 1, 1, False, 1.0, 0, 1)
    dice, width = np.random.default_rng(3), 4
    x = dice.standard_normal((1, width)).astype(np.float32)
    router = dice.standard_normal((8, width)).astype(np.float32)
    chosen = set(np.argsort(-(x @ router.T)[0])[:2].tolist())

    class Weights:
        def get(self, name: str, *shape: int) -> np.ndarray:
            expert = re.search(r"experts\.(\d+)\.", name)
            is_idle = expert is not None and int(expert[1]) not in chosen
            return router if "gate.weight" in name else np.full(shape, np.nan if is_idle else 0.1, np.float32)

        def stacked(self, names: list[str], *shape: int) -> np.ndarray:
            return np.concatenate([self.get(name, *shape) for name in names])

    with np.errstate(invalid="ignore"), DataFile(tmp_path / "moe.onnx.data") as data:
        g = Graph("moe", data, precision)
        out = moe(g, Weights(), "mlp", g.input("x", onnx.TensorProto.FLOAT, ("T", width)), config, width)
        g.output(out, "y", onnx.TensorProto.FLOAT, ("T", width))
    onnx.save(g.model({}), str(tmp_path / "moe.onnx"))
    session = InferenceSession(str(tmp_path / "moe.onnx"), providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], {"x": x})
    scores = np.exp((x @ router.T)[0])
    share = scores[list(chosen)].sum() / scores.sum()
    inner = 0.1 * x.sum()
    one = 0.1 * inner / (1 + np.exp(-inner)) * inner  # of each unit of an expert
    np.testing.assert_allclose(
        y, np.full((1, width), (6 * share + 12) * one), rtol=0.03 if precision == "int8" else 1e-5
    )


def scene() -> np.ndarray:
    """Any picture: 500 × 300, with edges and slopes."""
    down, across = np.mgrid[:300, :500]
    return np.stack([across % 256, (down * across) % 256, 255 * ((across // 60 + down // 50) % 2)], -1).astype(np.uint8)


def nano_prompt():
    from PIL import Image

    processor = Processor(NANO, read_model_config(NANO))
    return processor.process([Message("user", "<image>\nWhat is in the picture?", (Image.fromarray(scene()),))])


def test_nano_computes_what_it_computes_in_torch(exported: Exported) -> None:
    """Whatever its weights are: the same logits and tokens on both paths."""
    prompt = nano_prompt()
    model = DeepseekVL2(read_model_config(NANO), 4096, dtype=torch.float32, device="cpu")
    load_weights(model, NANO)
    with torch.inference_mode():
        expected = model.decoder.logits(run_prompt(model, prompt).hidden).numpy()
    np.testing.assert_allclose(prompt_logits(exported("nano"), prompt), expected, atol=LOOSE, rtol=0)
    reference = Engine(NANO, EngineConfig(engine="torch", dtype="float32", device="cpu", threads=1))
    ours = build_engine(exported("nano"))
    assert token_ids(greedy(ours, {"scene": prompt})) == token_ids(greedy(reference, {"scene": prompt}))


def test_fewer_kv_heads_and_biases(tmp_path: Path, exported: Exported) -> None:
    """No released model has them; the official code does, and so does torch's path."""
    folder = load_variant("mha-greedy").folder
    raw = read_settings(folder / "config.json")
    raw["language_config"] |= {"num_key_value_heads": raw["language_config"]["num_attention_heads"] // 2}
    raw["language_config"]["attention_bias"] = True
    checkpoint = write_random_checkpoint(tmp_path / "ckpt", folder, raw)
    case = load_variant("mha-greedy").case("landscape")
    model = DeepseekVL2(read_model_config(checkpoint), 4096, dtype=torch.float32, device="cpu")
    load_weights(model, checkpoint)
    with torch.inference_mode():
        expected = model.decoder.logits(run_prompt(model, case_prompt(case)).hidden).numpy()
    np.testing.assert_allclose(prompt_logits(exported(checkpoint), case_prompt(case)), expected, atol=LOOSE, rtol=0)


def write_random_checkpoint(folder: Path, like: Path, raw: dict) -> Path:
    import json
    import shutil

    shutil.copytree(like, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    (folder / "config.json").write_text(json.dumps(raw))
    model = DeepseekVL2(parse_model_config(raw), 64, dtype=torch.float32, device="cpu")
    draw_weights(model)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0.0, 0.5, generator=generator)
    save_file({name: tensor.contiguous().clone() for name, tensor in destinations(model)}, folder / "model.safetensors")
    return folder


def test_half_precision_stays_close(exported: Exported) -> None:
    """float16 graphs on a CPU: for the GPU's sake, and slow here."""
    for name in ("mha-greedy", "mla-greedy"):
        case = load_variant(name).case("landscape")
        assert_close(prompt_logits(exported(name, "fp16"), case_prompt(case))[-8:], case.get("logits_last8"), 0.1)
