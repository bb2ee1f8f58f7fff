"""16 greedy tokens of every golden prompt, whatever the engine does with it; in both number formats the same bits."""

import pytest

from golden_cases import VARIANTS, GoldenVariant, load_variant
from tests.parity.steps import build_engine, case_prompt, greedy
from vl2.core.types import Prompt


def prompts_of(variant: GoldenVariant) -> dict[str, Prompt]:
    return {case.name: case_prompt(case) for case in variant.cases}


def token_ids(answers: dict[str, list]) -> dict[str, list[int]]:
    return {name: [token_id for token_id, _ in answer] for name, answer in answers.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_tokens_are_the_official_ones(name: str):
    variant = load_variant(name)
    golden = {case.name: case.greedy_tokens for case in variant.cases}
    prompts = prompts_of(variant)
    engine = build_engine(name)
    for case_name, prompt in prompts.items():
        assert token_ids(greedy(engine, {case_name: prompt})) == {case_name: golden[case_name]}, "alone"
    assert token_ids(greedy(engine, prompts)) == golden, "all at once"
    assert token_ids(greedy(engine, prompts, preempt_every=5)) == golden, "after forced preemption"
    assert engine.scheduler.counts.preemptions >= 3
    chunked = build_engine(name, max_step_tokens=7, max_step_tiles=2)
    assert token_ids(greedy(chunked, prompts)) == golden, "prefill in chunks of 7 tokens"


@pytest.mark.cpu_only  # on a GPU the test above is that already
@pytest.mark.parametrize("name", VARIANTS)
def test_they_are_without_the_deterministic_mode_too(name: str):
    variant = load_variant(name)
    golden = {case.name: case.greedy_tokens for case in variant.cases}
    prompts = prompts_of(variant)
    engine = build_engine(name, deterministic=False)
    for case_name, prompt in prompts.items():
        assert token_ids(greedy(engine, {case_name: prompt})) == {case_name: golden[case_name]}, "alone"
    assert token_ids(greedy(engine, prompts, preempt_every=5)) == golden, "all at once, after forced preemption"
    chunked = build_engine(name, deterministic=False, max_step_tokens=7, max_step_tiles=2)
    assert token_ids(greedy(chunked, prompts)) == golden, "prefill in chunks of 7 tokens"


@pytest.mark.parametrize("name", VARIANTS)
def test_the_repetition_penalty_counts_prompt_and_pictures(name: str):
    variant = load_variant(name)
    golden = {case.name: case.meta["greedy_tokens_repetition_penalty_1_1"] for case in variant.cases}
    assert token_ids(greedy(build_engine(name), prompts_of(variant), repetition_penalty=1.1)) == golden


@pytest.mark.cpu_only  # until the mode exists on a GPU
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_tokens_and_logprobs_are_the_same_to_the_last_bit(name: str, dtype: str):
    """Alone, all at once, in small chunks, after preemption; at temperature 1, where every bit of a logit counts."""
    prompts = prompts_of(load_variant(name))
    params = {"temperature": 1.0, "seed": 5, "logprobs": 3, "max_tokens": 12}
    engine = build_engine(name, dtype=dtype)
    alone: dict[str, list] = {}
    for case_name, prompt in prompts.items():
        alone |= greedy(engine, {case_name: prompt}, **params)
    assert greedy(engine, dict(reversed(prompts.items())), preempt_every=4, **params) == alone
    chunked = build_engine(name, dtype=dtype, max_step_tokens=50, max_step_tiles=3, max_sequences=3, threads=2)
    assert greedy(chunked, prompts, **params) == alone
