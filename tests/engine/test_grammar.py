"""Answers under a grammar: by matchers alone, then through engines of random weights at temperature 1.5."""

from __future__ import annotations

import functools
import json
import random
import re
import threading
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from golden_cases import load_variant
from tests.e2e.server_process import LIMIT_S
from tests.engine.builders import sequence, text_prompt
from tests.parity.steps import build_engine, build_processor, case_prompt, drain
from vl2.core.types import FinishReason, GenerateRequest, Grammar, Message, Prompt, SamplingParams, TokenEvent
from vl2.engine.engine import Engine
from vl2.engine.grammar import Constraint, Grammars, late_chunks
from vl2.engine.scheduler import Chunk, StepBatch
from vl2.processing.grounding import parse_grounding
from vl2.processing.tokenizer import Tokenizer

VARIANTS = ("mla-greedy", "mha-greedy")  # DeepSeek-V2's and V3's ways of cutting text
ROWS = 640
CHOICES = ("yes", "no", "not sure", 'a "quoted" one', "two\nlines", "猫")
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog", "both"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "name": {"type": "string", "maxLength": 6},
        "boxes": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["kind", "count", "boxes"],
    "additionalProperties": False,
}
JSON_SCHEMA = Grammar("json_schema", json.dumps(SCHEMA))


@functools.cache
def grammars(variant: str) -> Grammars:
    tokenizer = Tokenizer.from_folder(load_variant(variant).folder, ROWS)
    return Grammars(load_variant(variant).folder, ROWS, tokenizer.eos_id)


def constraint(variant: str, grammar: Grammar, **params) -> Constraint:
    seq = sequence(text_prompt(0), grammar=grammar, max_tokens=300, **params)
    grammars(variant).constrain(seq)
    assert seq.constraint is not None
    return seq.constraint


def draw(variant: str, grammar: Grammar, seed: int, **params) -> tuple[str, list[int]]:
    """A text of random allowed tokens, until nothing but EOS is allowed or EOS is drawn."""
    rng, path = random.Random(seed), constraint(variant, grammar, **params)
    tokenizer = Tokenizer.from_folder(load_variant(variant).folder, ROWS)
    token_ids: list[int] = []
    while True:
        allowed = np.flatnonzero(path.next_mask.result()).tolist()
        token_id = rng.choice(allowed)
        if token_id == tokenizer.eos_id:
            return b"".join(map(tokenizer.token_bytes, token_ids)).decode(), token_ids
        token_ids.append(token_id)
        path.accept(token_id)


@pytest.mark.parametrize("variant", VARIANTS)
def test_whatever_is_drawn_keeps_to_the_grammar(variant: str):
    for seed in range(30):
        jsonschema.validate(json.loads(draw(variant, JSON_SCHEMA, seed)[0]), SCHEMA)
    expression = r"[0-9]{3}-[a-c]{1,5}(é|猫)"
    assert all(re.fullmatch(expression, draw(variant, Grammar("regex", expression), seed)[0]) for seed in range(30))
    assert {draw(variant, Grammar("choice", CHOICES), seed)[0] for seed in range(60)} == set(CHOICES)


def test_a_json_object_has_no_special_tokens_and_no_ids_without_a_token():
    path = constraint("mla-greedy", Grammar("json_object"))
    tokenizer = Tokenizer.from_folder(load_variant("mla-greedy").folder, ROWS)
    for token_id in tokenizer.encode('{"a": "'):
        path.next_mask.result()  # a token is drawn with a mask, never before it is there
        path.accept(token_id)
    allowed = set(np.flatnonzero(path.next_mask.result()).tolist())
    assert tokenizer.encode("a")[0] in allowed
    assert not allowed & (tokenizer.reserved_ids | set(range(tokenizer.vocab_size, ROWS)))


def test_ignoring_eos_goes_on_as_long_as_the_grammar_can():
    grammar = Grammar("regex", "a{1,6}")
    assert min(len(draw("mla-greedy", grammar, seed)[0]) for seed in range(10)) < 6
    assert {draw("mla-greedy", grammar, seed, ignore_eos=True)[0] for seed in range(10)} == {"aaaaaa"}


class SlowMatcher:
    def __init__(self, gate: threading.Event) -> None:
        self.gate = gate

    def mask(self) -> np.ndarray:
        self.gate.wait(LIMIT_S)
        return np.ones(ROWS, bool)

    def accept(self, token_id: int) -> None:
        pass


def test_rows_whose_mask_is_late_sit_the_step_out_and_others_do_not_wait():
    gate = threading.Event()
    slow, free = (sequence(text_prompt(0, 1, 2)) for _ in range(2))
    slow.constraint = Constraint(lambda: SlowMatcher(gate), Grammars(Path(), ROWS, 1), ignore_eos=False)
    batch = StepBatch([Chunk.of(slow, 0, 3), Chunk.of(free, 0, 3)], [])
    late = late_chunks(batch)
    assert late == [batch.chunks[0]]
    assert batch.without_last_token(late).chunks == [Chunk.of(slow, 0, 2), Chunk.of(free, 0, 3)]
    assert batch.without_last_token(late).sampled == [Chunk.of(free, 0, 3)]
    gate.set()
    slow.constraint.next_mask.result(LIMIT_S)
    assert late_chunks(batch) == []


# ---- through an engine ----------------------------------------------------------------------------------------------


@functools.cache
def engine(variant: str) -> Engine:
    return build_engine(variant, max_sequences=128, threads=1)


def answers(
    engine: Engine, requests: dict[str, tuple[Prompt, SamplingParams]], preempt_every: int = 0
) -> dict[tuple[str, int], list[TokenEvent]]:
    for name, (prompt, params) in requests.items():
        engine.add(GenerateRequest(name, prompt, params))
    events: dict[tuple[str, int], list[TokenEvent]] = {}
    for event in drain(engine, preempt_every):
        events.setdefault((event.request_id, event.choice_idx), []).append(event)
    return events


def text_of(variant: str, events: list[TokenEvent]) -> str:
    tokenizer = build_processor(variant).tokenizer
    ids = [event.token_id for event in events if event.token_id not in (None, tokenizer.eos_id)]
    return b"".join(map(tokenizer.token_bytes, ids)).decode(errors="replace")


@pytest.mark.parametrize("variant", VARIANTS)
def test_250_grounding_answers_parse_at_temperature_1_5(variant: str):
    """Half of them are begun for the model up to its first box, so that it is sure to write some."""
    question, begun = Message("user", "Where is it?"), "<|ref|>the cat<|/ref|><|det|>"
    prompts = {
        prefix: build_processor(variant).process([question, Message("assistant", prefix)]) for prefix in ("", begun)
    }
    params = {"temperature": 1.5, "grammar": Grammar("grounding"), "max_tokens": 36, "n": 25}
    # random weights come upon a tag once in 600 tokens; this makes it once in a few
    params["logit_bias"] = dict.fromkeys(build_processor(variant).tokenizer.tag_ids.values(), 4.0)
    requests = {
        f"{prefix}#{seed}": (prompt, SamplingParams(**params, seed=seed))
        for prefix, prompt in prompts.items()
        for seed in range(5)
    }
    num_objects = num_answers = 0
    for (name, _), events in answers(engine(variant), requests).items():
        prefix = name.partition("#")[0]
        text = prefix + text_of(variant, events)
        num_answers += 1
        assert events[-1].error is None and events[-1].finish_reason is not None
        if "<|" not in text:
            continue
        objects = parse_grounding(text, 1000, 1000)
        assert objects is not None, text
        num_objects += len(objects)
        boxes = [box for found in objects for box in found.boxes_norm]
        assert all(0 <= x1 < x2 <= 999 and 0 <= y1 < y2 <= 999 for x1, y1, x2, y2 in boxes), text
    assert num_answers == 250 and num_objects > 130


def test_choices_of_a_request_and_preempted_ones_keep_to_their_schema_and_to_their_seed():
    variant = "mla-greedy"
    prompt = case_prompt(load_variant(variant).case("text"))
    colours = {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 2, "maxItems": 3}
    grammar = Grammar("json_schema", json.dumps(colours))
    schema = SamplingParams(temperature=1.5, grammar=grammar, max_tokens=200, n=3, seed=1)
    free = SamplingParams(temperature=1.5, max_tokens=40, seed=2)
    requests = {"schema": (prompt, schema), "free": (prompt, free)}
    once = answers(engine(variant), requests, preempt_every=9)
    for name, alone in requests.items():
        for key, events in answers(engine(variant), {name: alone}).items():
            assert [event.token_id for event in events] == [event.token_id for event in once[key]]
    texts = {idx: text_of(variant, once["schema", idx]) for idx in range(3)}
    assert len(set(texts.values())) > 1
    for idx, text in texts.items():
        assert once["schema", idx][-1].finish_reason is FinishReason.STOP
        jsonschema.validate(json.loads(text), colours)


def test_a_grammar_that_fails_midway_ends_its_own_request_alone():
    variant = "mla-greedy"
    prompt = case_prompt(load_variant(variant).case("text"))
    machine = engine(variant)
    free = SamplingParams(max_tokens=20, seed=1)
    machine.add(GenerateRequest("broken", prompt, SamplingParams(grammar=JSON_SCHEMA, max_tokens=50, seed=1, n=2)))
    machine.add(GenerateRequest("free", prompt, free))
    events: list[TokenEvent] = []
    while machine.has_work:
        broken = next((seq for seq in machine.scheduler.running if seq.num_output_tokens == 4 and seq.constraint), None)
        if broken is not None and broken.constraint is not None:
            broken.constraint.next_mask.result(LIMIT_S)
            broken.constraint.accept(ROWS - 1)  # not in the grammar
        events += machine.step()
    errors = [event for event in events if event.error is not None]
    assert [event.request_id for event in errors] == ["broken"] and "grammar" in str(errors[0].error)
    assert sum(event.request_id == "free" for event in events) >= 1 and events[-1].error is None
