"""The model against the official code, stage by stage, in float32. Tolerances are those of the golden set's README."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from golden_cases import VARIANTS, GoldenCase, load_gates, load_variant, load_variants, read_json
from tests import device
from tests.parity.steps import build_model, case_prompt, run_prompt, text_step
from vl2.core.model_config import MoEConfig
from vl2.model.kv_pool import KVPool
from vl2.model.linear import Linear
from vl2.model.moe import MLP
from vl2.ops.gate.reference import eligible_scores, route

CASES = [case for variant in load_variants() for case in variant.cases]
TIGHT, LOOSE = 1e-4, 2e-3


def assert_equal(ours: torch.Tensor, golden: np.ndarray | None, atol: float) -> None:
    """Where the trimmed set left a tensor out there is nothing to compare."""
    if golden is not None:
        torch.testing.assert_close(ours.cpu(), torch.from_numpy(golden), atol=atol, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=str)
@torch.inference_mode()
def test_every_stage_of_a_prompt(case: GoldenCase):
    model, prompt = build_model(case.variant), case_prompt(case)
    assert prompt.token_ids == case.input_ids
    if len(prompt.tiles):
        features = model.vision(torch.from_numpy(prompt.tiles).to(device.DEVICE))
        golden = case.get("vision_out")
        if golden is not None:
            ends = features[[0, -1]] if len(golden) < len(features) else features
            assert_equal(ends, golden, TIGHT)
        assert_equal(model.projector(features), case.get("projector_out"), TIGHT)
    run = run_prompt(model, prompt)
    assert_equal(run.embeds, case.get("inputs_embeds"), TIGHT)
    assert_equal(run.hidden, case.get("hidden_last"), LOOSE)
    logits = model.decoder.logits(run.hidden)
    assert_equal(logits[-8:], case.get("logits_last8"), LOOSE)
    assert_equal(logits, case.get("logits"), LOOSE)
    best = case.get("argmax_all")
    if best is not None:
        assert logits.argmax(-1).tolist() == best.tolist()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_products_that_begin_with_the_residual(variant: str, monkeypatch: pytest.MonkeyPatch):
    """What a GPU does in bfloat16 where rows are many (`Backend.linear_onto`), here in float32."""
    case = next(case for case in CASES if case.variant == variant and len(case_prompt(case).tiles))
    model, added = build_model(variant), []

    def onto(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        added.append(residual)
        return residual.add_(F.linear(x, weight, bias))

    for module in model.modules():
        if isinstance(module, Linear):
            monkeypatch.setattr(module, "multiply_onto", onto)
    run = run_prompt(model, case_prompt(case))
    assert_equal(run.hidden, case.get("hidden_last"), LOOSE)
    assert_equal(model.decoder.logits(run.hidden)[-8:], case.get("logits_last8"), LOOSE)
    assert len(added) == len(model.decoder.layers) + 2 * len(model.vision.blocks)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_single_blocks(variant: str):
    golden, model = load_variant(variant).tensors, build_model(variant)
    x = torch.from_numpy(golden["unit.x"]).to(device.DEVICE)
    for name in (name for name in golden if name.startswith("unit.") and name != "unit.x"):
        kind, layer, *rest = name.removeprefix("unit.").split(".")
        block = model.decoder.layers[int(layer.removeprefix("layer"))]
        if kind == "attn":
            first = int(rest[0].removeprefix("pos"))
            if first and device.DEVICE == "cuda" and model.config.language.mla is not None:
                continue  # the kernels take a row's position from the context that it ends; here nothing stands before
            ours = _attention_at(model, block.attention, x, first)
        elif kind in ("dense_mlp", "moe"):
            ours = block.mlp(x)
        elif kind == "gate":
            ids, weights = _sorted_by_id(*route(x, block.mlp.router, block.mlp.router_bias, block.mlp.config))
            if rest == ["ids"]:
                assert ids.tolist() == golden[name].tolist()
                continue
            ours = weights
        else:
            raise AssertionError(f"golden block {name} is not tested")
        assert_equal(ours, golden[name], TIGHT)
    assert isinstance(model.decoder.layers[0].mlp, MLP)


def _attention_at(model, attention, x: torch.Tensor, first: int) -> torch.Tensor:
    """One block and its projection on rows at positions first, first + 1 …, as if nothing stood before them."""
    step = text_step(len(x), first_position=first)
    pool = KVPool(model.config.language, 8, 16, dtype=torch.float32, device=device.DEVICE)
    return attention.o_proj(attention(x, step, step.queries, model.decoder.rope, pool.layers[0]))


def _sorted_by_id(ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The golden order: ids ascending, weights in that order."""
    ids, order = ids.sort(-1)
    return ids, weights.gather(-1, order)


def test_every_gate_of_the_official_code():
    """3 methods × 2 scorings × group settings; the official selection order is unspecified, so ids are sorted."""
    tensors, cases = load_gates(), read_json("gates/gates.json")["cases"]
    assert len(cases) > 10
    for case in cases:
        own = {
            name: torch.from_numpy(tensors[f"{case['key']}.{name}"]) for name in ("x", "weight", "ids", "topk_weight")
        }
        bias = tensors.get(f"{case['key']}.bias")
        bias = None if bias is None else torch.from_numpy(bias)
        ids, weights = _sorted_by_id(*route(own["x"], own["weight"], bias, _gate_config(case)))
        if case["negative_corrected_scores"]:
            _assert_equally_good(own, ids, bias, _gate_config(case))
            continue
        assert ids.tolist() == own["ids"].tolist(), case
        torch.testing.assert_close(weights, own["topk_weight"], atol=1e-5, rtol=1e-4)


def _assert_equally_good(
    own: dict[str, torch.Tensor], ids: torch.Tensor, bias: torch.Tensor, config: MoEConfig
) -> None:
    """Experts of masked groups all score 0.0 and beat negative ones. Which of these equal ones is taken the official
    code leaves to torch.topk; ours takes the lowest ids. So the scores that were chosen must be equal.
    """
    logits = own["x"] @ own["weight"].T
    scores = logits.softmax(-1) if config.scoring_func == "softmax" else logits.sigmoid()
    choice = eligible_scores(scores, bias, config)
    ours, golden = (choice.gather(-1, chosen.long()).sort(-1).values for chosen in (ids, own["ids"]))
    torch.testing.assert_close(ours, golden, atol=1e-6, rtol=1e-5)
    assert bool((golden == 0).any()), "the case is about ties at 0.0"


def _gate_config(case: dict) -> MoEConfig:
    return MoEConfig(
        num_experts=case["n_routed_experts"],
        num_active=case["num_experts_per_tok"],
        expert_width=1,
        shared_width=0,
        topk_method=case["topk_method"],
        scoring_func=case["scoring_func"],
        num_groups=case["n_group"],
        num_active_groups=case["topk_group"],
        norm_topk_prob=case["norm_topk_prob"],
        routed_scaling_factor=case["routed_scaling_factor"],
        first_dense_layers=0,
        layer_freq=1,
    )
