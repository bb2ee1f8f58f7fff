"""What CUDA graphs hold, on a CPU: each replay runs the step anew, kernels run in the interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest

from golden_cases import load_variant
from tests import interpreter  # noqa: F401  # before Triton is imported anywhere
from tests.engine.as_on_gpu import add_graphs
from tests.parity.steps import build_engine, case_prompt, greedy
from vl2.engine.engine import Engine
from vl2.model.linear import Linear
from vl2.ops import exact_backend, triton_backend
from vl2.ops.rows import RowRounding


def with_graphs(engine: Engine, monkeypatch: pytest.MonkeyPatch, *, is_exact: bool = False) -> Engine:
    """The engine as it is on a GPU, deterministic or not."""
    runner, kernels = engine.runner, exact_backend if is_exact else triton_backend
    rounding = RowRounding(is_exact=is_exact)
    for module in runner.model.modules():
        if isinstance(getattr(module, "ops", None), type(kernels)):
            module.ops = kernels
        if isinstance(module, Linear):
            module.multiply = kernels.linear
    runner.model.set_rounding(rounding)
    runner.shape = replace(runner.shape, rounding=rounding)
    add_graphs(engine, monkeypatch, rounding, max_pages=4)
    return engine


@pytest.mark.parametrize(("name", "second"), [("mla-greedy", "square"), ("mha-greedy", "text")])
def test_prompts_and_answers_in_graphs_give_the_official_tokens(name: str, second: str, monkeypatch):
    variant = load_variant(name)
    engine = with_graphs(build_engine(variant.name, max_sequences=2, max_step_tokens=32), monkeypatch)
    # The second waits for the first's last chunk: a mixed step.
    cases = {"first": variant.case("text"), "second": variant.case(second)}
    answers = greedy(engine, {key: case_prompt(case) for key, case in cases.items()}, max_tokens=3)
    for key, case in cases.items():
        assert [token_id for token_id, _ in answers[key]] == case.greedy_tokens[:3]


def test_kernels_of_the_deterministic_mode_give_the_official_tokens_after_a_preemption_too(monkeypatch):
    variant = load_variant("mla-greedy")
    engine = build_engine(variant.name, max_sequences=2, max_step_tokens=32, prefix_cache=False)
    engine, kinds = with_graphs(engine, monkeypatch, is_exact=True), set()
    launch = engine.runner.launch
    monkeypatch.setattr(engine.runner, "launch", lambda batch: kinds.add(batch.is_decode) or launch(batch))
    case = variant.case("text")
    answer = greedy(engine, {"only": case_prompt(case)}, preempt_every=4, max_tokens=3)["only"]
    assert engine.scheduler.counts.preemptions and kinds == {True, False}
    assert [token_id for token_id, _ in answer] == case.greedy_tokens[:3]
