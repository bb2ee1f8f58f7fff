"""A step is launched before the tokens of the one before it are back, as on a GPU: same tokens, one step later."""

import pytest
import torch

from golden_cases import load_variant
from tests.engine.builders import sequence
from tests.parity.steps import build_engine, case_prompt, greedy
from vl2.core.types import GenerateRequest, SamplingParams
from vl2.engine.device_rows import DeviceRows
from vl2.engine.engine import Engine
from vl2.engine.flying import FlyingStep
from vl2.engine.scheduler import StepBatch, TileJob

VARIANT = load_variant("mla-greedy")
pytestmark = pytest.mark.cpu_only  # the device's rows are put into main memory


def torch_engine(**changes) -> Engine:
    """A GPU's steps are torch's; the library decodes on a CPU alone."""
    engine = build_engine(VARIANT.name, deterministic=False, **changes)
    engine.runner.native_steps = None
    return engine


def overlapping_engine(**changes) -> Engine:
    engine = torch_engine(**changes)
    engine.runner.rows = DeviceRows(engine.scheduler.max_sequences, 256, torch.device("cpu"))
    return engine


def test_tokens_that_the_host_does_not_know_yet_come_from_the_device():
    engine = overlapping_engine(max_step_tokens=20)
    prompts = {case.name: case_prompt(case) for case in VARIANT.cases}
    answers = greedy(engine, prompts, preempt_every=5)
    assert {name: [t for t, _ in answer] for name, answer in answers.items()} == {
        case.name: case.greedy_tokens for case in VARIANT.cases
    }
    assert engine.scheduler.counts.preemptions >= 3


def test_an_answer_that_ended_while_its_next_step_ran_gets_no_token_more():
    case = VARIANT.case("text")
    engine, stop = overlapping_engine(), case.greedy_tokens[3]
    assert stop not in case.greedy_tokens[:3]
    params = SamplingParams(max_tokens=16, seed=0, ignore_eos=True, stop_token_ids=(stop,))
    engine.add(GenerateRequest("text", case_prompt(case), params))
    events = []
    while engine.has_work:
        events += engine.step()
    assert [event.token_id for event in events] == case.greedy_tokens[:4]
    assert events[-1].finish_reason is not None
    assert engine.scheduler.pages.num_free == engine.scheduler.pages.num_pages


def test_penalties_wait_for_the_tokens_they_count():
    case = VARIANT.case("square")
    expected = case.meta["greedy_tokens_repetition_penalty_1_1"]
    answers = greedy(overlapping_engine(), {"square": case_prompt(case)}, repetition_penalty=1.1)
    assert [token_id for token_id, _ in answers["square"]] == expected


def test_draws_are_those_of_the_host_s_sampler():
    case = VARIANT.case("square")
    params = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 3}
    host = greedy(torch_engine(), {"square": case_prompt(case)}, **params)
    device = greedy(overlapping_engine(), {"square": case_prompt(case)}, **params)
    assert device == host


def test_a_step_that_only_encodes_tiles_is_waited_for_no_sooner_than_another():
    engine, asked = overlapping_engine(), sequence(case_prompt(VARIANT.case("square")))
    pending = engine.runner.launch(StepBatch([], [TileJob(asked, tile_idx=0, slot=0)]))
    assert isinstance(pending, FlyingStep) and pending.result().token_ids == []
