"""float16 holds at most 65,504: whatever the weights do, nothing on any path may become infinite, and then NaN."""

import pytest
import torch

from golden_cases import VARIANTS, load_variant
from tests.parity.steps import build_engine, case_prompt, greedy
from vl2.model.vl2 import DeepseekVL2


@pytest.mark.parametrize("name", VARIANTS)
def test_float16_answers_like_float32_where_nothing_is_large(name: str):
    case = load_variant(name).case("square")
    answers = greedy(build_engine(name, dtype="float16"), {"square": case_prompt(case)}, max_tokens=1, logprobs=1)
    [(token_id, _)] = answers["square"]
    assert token_id == case.greedy_tokens[0]


def blow_up(model: DeepseekVL2) -> None:
    """Residuals and inner results far beyond float16."""
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.float16 and parameter.dim() >= 2:
            factor = 2000.0 if "down" in name or "o_proj" in name or "fc2" in name else 30.0
            parameter.copy_((parameter.float() * factor).clamp(-6e4, 6e4))


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_that_overflow_give_finite_logits(name: str):
    engine = build_engine(name, dtype="float16")
    blow_up(engine.runner.model)
    prompt = case_prompt(load_variant(name).case("square"))
    answers = greedy(engine, {"square": prompt}, max_tokens=4, logprobs=5)
    tops = [pair for _, logprobs in answers["square"] for pair in logprobs.top]
    assert len(tops) == 20 and all(torch.isfinite(torch.tensor(logprob)) for _, logprob in tops)
    assert bool(torch.isfinite(engine.runner.features).all())
    assert all(bool(torch.isfinite(layer).all()) for layer in engine.runner.pool.layers)


def test_the_same_weights_do_overflow_without_saturation(monkeypatch: pytest.MonkeyPatch):
    """So the test above tests something."""
    monkeypatch.setattr("vl2.model.linear.saturate", lambda x: x)
    engine = build_engine("mla-greedy", dtype="float16")
    blow_up(engine.runner.model)
    greedy(engine, {"square": case_prompt(load_variant("mla-greedy").case("square"))}, max_tokens=1)
    assert not bool(torch.isfinite(engine.runner.features).all())
