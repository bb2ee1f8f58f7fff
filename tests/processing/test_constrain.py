"""What is wrong with a grammar is told before a request queues, in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vl2.core.errors import InvalidRequest
from vl2.core.types import Grammar, Message
from vl2.processing.constrain import MAX_SPEC_CHARS, check_grammar, check_prompt
from vl2.processing.processor import Processor


def schema(value: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "integer"}


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar("json_schema", "{bad"), "the schema must be a JSON object: "),
        (schema([1]), "the schema must be a JSON object: "),
        (schema({"type": "text"}), "the schema cannot be used: Invalid type: text"),
        (schema({"properties": "a"}), "properties must be an object"),
        (schema({"not": {"type": "string"}}), 'Unimplemented keys: ["not"]'),
        (schema({"type": "array", "uniqueItems": True}), 'Unimplemented keys: ["uniqueItems"]'),
        (schema({"type": "string", "minLength": 5, "maxLength": 3}), "minLength (5) is greater than maxLength (3)"),
        (schema({"enum": []}), "Unsatisfiable"),
        (schema({"$ref": "#/$defs/none"}), "'/$defs/none' does not exist"),
        (schema({"$ref": "http://127.0.0.1/schema.json"}), "does not fetch resources"),
        (schema({"$ref": "#"}), "no text can satisfy it"),
        (schema({"type": "string", "pattern": "(?=a)"}), "look-ahead and look-behind, is not supported"),
        (schema(nested(300)), "recursion limit"),
        (Grammar("regex", "("), "the expression cannot be used: unclosed group"),
        (Grammar("regex", "(" * 100_000), "the expression cannot be used: "),
        (Grammar("regex", r"(a)\1"), "backreferences are not supported"),
        (Grammar("regex", "[a&&b]"), "no text can satisfy it"),
        (Grammar("regex", "a" * (MAX_SPEC_CHARS + 1)), f"the most is {MAX_SPEC_CHARS}"),
        (Grammar("choice", ("a" * MAX_SPEC_CHARS, "b")), f"the most is {MAX_SPEC_CHARS}"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_grammar_is_refused_in_one_line(grammar: Grammar, words: str):
    with pytest.raises(InvalidRequest) as caught:
        check_grammar(grammar)
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 240
    assert caught.value.param == "grammar"


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("json_object"),
        Grammar("grounding"),
        schema({}),
        schema(nested(50)),
        schema({"$defs": {"n": {"properties": {"child": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}),
        Grammar("regex", r"^\d{3}-\p{L}+$"),
        Grammar("choice", ("yes", 'a "quoted" one', "back\\slash", "two\nlines", "猫", "\x00\x7f", "(a|b)*")),
        Grammar("choice", tuple(f"number {i}" for i in range(2000))),
    ],
    ids=lambda grammar: f"{grammar.kind} {grammar.spec}"[:40],
)
def test_a_good_grammar_is_taken(grammar: Grammar):
    check_grammar(grammar)


@pytest.mark.parametrize(
    ("kind", "spec"), [("choice", ()), ("choice", "yes"), ("regex", ""), ("json_schema", ()), ("grounding", "x")]
)
def test_kind_and_spec_go_together(kind: Any, spec: Any):
    with pytest.raises(InvalidRequest, match=f"the spec of a {kind} grammar"):
        Grammar(kind, spec)
    with pytest.raises(
        InvalidRequest, match="kinds are json_object, json_schema, text_or_json, choice, regex, grounding"
    ):
        Grammar("yaml")  # type: ignore[arg-type]


def test_grounding_asks_for_a_picture_and_a_sound_beginning(processor: Processor):
    from PIL import Image

    def check(*messages: Message) -> None:
        check_prompt(Grammar("grounding"), processor.process(list(messages)), processor.tokenizer)

    question = Message("user", "<image>\nWhere is <|ref|>the cat<|/ref|>?", (Image.new("RGB", (40, 40)),))
    check(question)
    check(question, Message("assistant", "<|ref|>a cat<|/ref|><|det|>[[1, 2, "))
    with pytest.raises(InvalidRequest, match="none was sent"):
        check(Message("user", "Where?"))
    with pytest.raises(InvalidRequest, match="not well-formed"):
        check(question, Message("assistant", "<|ref|>a cat<|/ref|><|det|>[[5, 2, 5, "))
