"""Answers while others come and go, end early and give way: on a CPU as on a GPU, with `--device cuda` on one."""

from __future__ import annotations

import functools
import random
from collections import defaultdict
from dataclasses import dataclass, field

import pytest

from golden_cases import load_variant
from tests import device
from tests.engine.as_on_gpu import as_on_gpu
from tests.engine.builders import text_prompt
from tests.parity.steps import MAX_PREEMPTIONS, build_engine, case_prompt
from vl2.core.types import GenerateRequest, Prompt, SamplingParams
from vl2.engine.engine import Engine

MAX_TOKENS, PAGE_SIZE = 64, 8
SETTINGS = {"mla-greedy": (192, 64), "mha-greedy": (552, 104)}
"""Tokens of the longest context, and pages for all sequences: too few for four long ones at once."""
PICTURES = {"mla-greedy": ("square", "portrait", "two"), "mha-greedy": ("square", "multiturn")}


@dataclass(frozen=True)
class Question:
    prompt: Prompt
    params: dict = field(default_factory=dict)

    def request(self, name: str, max_tokens: int) -> GenerateRequest:
        params = SamplingParams(max_tokens=max_tokens, seed=5, ignore_eos=True, **self.params)
        return GenerateRequest(name, self.prompt, params)


@functools.cache
def questions(variant: str) -> list[Question]:
    """Short and long, with pictures and without; some begin as others do, some end where a page does."""
    prompts = [case_prompt(load_variant(variant).case(name)) for name in ("text", *PICTURES[variant])]
    prompts += [text_prompt(*range(20, 20 + length)) for length in (1, 2, 16, 48, 63)]
    prompts += [text_prompt(*range(first, first + 100)) for first in (200, 300, 400)]
    several = {"n": 2, "temperature": 1.0, "top_p": 0.9}
    others = [Question(prompts[0], several), Question(prompts[1], several)]
    others += [Question(prompts[0], {"repetition_penalty": 1.2}), Question(prompts[1], {"logprobs": 2})]
    return [Question(prompt) for prompt in prompts] + others


def new_engine(variant: str, is_deterministic: bool, **changes) -> Engine:
    context, num_pages = SETTINGS[variant]
    sizes = {"max_sequences": 4, "max_step_tokens": 256, "max_context_tokens": context, "image_cache_tiles": 10}
    sizes |= {"kv_cache_tokens": PAGE_SIZE * num_pages, "page_size_tokens": PAGE_SIZE}
    return build_engine(variant, deterministic=is_deterministic, **sizes | changes)


@functools.cache
def alone(variant: str, is_deterministic: bool) -> dict[tuple[int, int], list[int]]:
    """(question, choice) → the tokens of an answer that has the engine for itself."""
    engine, answers = new_engine(variant, is_deterministic, prefix_cache=False), defaultdict(list)
    for number, question in enumerate(questions(variant)):
        engine.add(question.request("only", MAX_TOKENS))
        while engine.has_work:
            for event in engine.step():
                answers[number, event.choice_idx].append(event.token_id)
    return answers


class Load:
    """Requests that arrive, end and are given up at random, always alike for a seed."""

    def __init__(self, engine: Engine, variant: str, seed: int) -> None:
        self.engine, self.asked, self.rng = engine, questions(variant), random.Random(seed)
        self.numbers: dict[str, int] = {}  # of the questions, by request
        self.tokens: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        self.ended: set[tuple[str, int]] = set()
        self.given_up: set[tuple[str, int]] = set()
        pacer, self.num_steps, self.prompt_tokens = engine.scheduler.pacer, 0, 1
        pacer.prefill_tokens = lambda num_decodes: self.prompt_tokens if num_decodes else 256
        pacer.allows = lambda before, more, num_decodes: self.rng.random() < 0.5

    def run(self, num_requests: int) -> None:
        """Until all that came is done; some come when nobody else is there."""
        while num_requests or self.engine.has_work:
            if num_requests and self.rng.random() < 0.15:
                num_requests -= 1
                self.ask()
            self.disturb()
            self.num_steps += 1
            assert self.num_steps < 5000, "nothing moves on"
            for event in self.engine.step():
                assert event.error is None, event.error
                self.tokens[event.request_id, event.choice_idx].append(event.token_id)
                if event.finish_reason is not None:
                    self.ended.add((event.request_id, event.choice_idx))

    def ask(self) -> None:
        number, name = self.rng.randrange(len(self.asked)), f"request {len(self.numbers)}"
        self.numbers[name] = number
        self.engine.add(self.asked[number].request(name, self.rng.choice((1, 17, 40, MAX_TOKENS))))

    def disturb(self) -> None:
        scheduler = self.engine.scheduler
        if self.rng.random() < 0.05:  # for a while prompts are slow or fast
            self.prompt_tokens = self.rng.choice((1, 3, 40))
        if scheduler.running and self.rng.random() < 0.03:
            given_up = self.rng.choice(scheduler.running)
            self.given_up.add((given_up.request_id, given_up.choice_idx))
            self.engine.abort(given_up.request_id, given_up.choice_idx)
        if scheduler.running and self.rng.random() < 0.03 and scheduler.counts.preemptions < 3 * MAX_PREEMPTIONS:
            scheduler.preempt(self.rng.choice(scheduler.running))


@pytest.mark.parametrize(("seed", "is_deterministic"), [(0, False), (1, False), (2, True)])
@pytest.mark.parametrize("variant", ["mla-greedy", "mha-greedy"])
def test_answers_are_those_of_an_engine_that_has_nothing_else_to_do(
    variant: str, seed: int, is_deterministic: bool, monkeypatch: pytest.MonkeyPatch
):
    """Greedy, drawn, of several choices, with a penalty: whatever was before them in their rows, pages and tile slots,
    which they get and lose while steps that write there are under way."""
    engine = new_engine(variant, is_deterministic)
    if device.DEVICE == "cpu":
        engine = as_on_gpu(engine, monkeypatch)
    load = Load(engine, variant, seed)
    for _ in range(3):  # with nothing to do in between
        load.run(num_requests=12)
    right = alone(variant, is_deterministic)
    for (name, choice), tokens in load.tokens.items():
        assert tokens == right[load.numbers[name], choice][: len(tokens)], (name, choice)
    wanted = {
        (name, choice)
        for name, number in load.numbers.items()
        for choice in range(load.asked[number].params.get("n", 1))
    }
    assert wanted == load.ended | load.given_up
    counts, pages = engine.scheduler.counts, engine.scheduler.pages
    assert counts.preemptions and counts.cached_tokens and pages.num_free == pages.num_pages
