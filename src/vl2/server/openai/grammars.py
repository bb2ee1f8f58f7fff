"""The fields that shape an answer → at most one `Grammar`: OpenAI's response_format, vLLM's guided_* and
structured_outputs, our grounding.
"""

from __future__ import annotations

import json
from typing import Any

from vl2.core.errors import InvalidRequest
from vl2.core.types import Grammar, GrammarKind
from vl2.server.openai import schema


def to_grammar(body: schema.ChatRequest) -> Grammar | None:
    """Whether a schema or expression is good in itself is found out below.

    Raises: InvalidRequest that names the field.
    """
    wanted = _wanted(body)
    if len(wanted) > 1:
        first, second, *_ = wanted
        raise InvalidRequest(
            f"{_field(first)} and {_field(second)} cannot be combined; send one of them", param=_field(second)
        )
    if not wanted:
        return None
    [(path, (kind, spec))] = wanted.items()
    try:
        return Grammar(kind, spec)
    except InvalidRequest:
        rule = "must be a list of non-empty strings" if kind == "choice" else "must not be empty"
        raise InvalidRequest(f"{path} {rule}", param=path) from None


def grammar_path(body: schema.ChatRequest) -> str | None:
    """The field that the grammar came from: `response_format.json_schema.schema`."""
    return next(iter(_wanted(body)), None)


def _wanted(body: schema.ChatRequest) -> dict[str, tuple[GrammarKind, str | tuple[str, ...]]]:
    """Path of the field → kind and spec."""
    wanted: dict[str, tuple[GrammarKind, str | tuple[str, ...]]] = {}
    form = body.response_format
    if form is not None and form.type == "json_object":
        wanted["response_format"] = ("json_object", "")
    if form is not None and form.type == "json_schema":
        if form.json_schema is None:
            raise InvalidRequest("response_format.json_schema is missing", param="response_format.json_schema")
        path = "response_format.json_schema.schema"
        wanted[path] = ("json_schema", schema_text(path, form.json_schema.schema_))
    if body.guided_json is not None:
        wanted["guided_json"] = ("json_schema", schema_text("guided_json", body.guided_json))
    if body.guided_choice is not None:
        wanted["guided_choice"] = ("choice", tuple(body.guided_choice))
    if body.guided_regex is not None:
        wanted["guided_regex"] = ("regex", body.guided_regex)
    wanted |= _structured(body.structured_outputs)
    if body.grounding:
        wanted["grounding"] = ("grounding", "")
    return wanted


def _structured(given: schema.StructuredOutputs | None) -> dict[str, tuple[GrammarKind, str | tuple[str, ...]]]:
    wanted: dict[str, tuple[GrammarKind, str | tuple[str, ...]]] = {}
    if given is None:
        return wanted
    name = "structured_outputs"
    if all(value is None for value in vars(given).values()):
        raise InvalidRequest(f"{name} must have one of json, json_object, regex and choice", param=name)
    if given.json_ is not None:
        wanted[f"{name}.json"] = ("json_schema", schema_text(f"{name}.json", given.json_))
    if given.json_object:
        wanted[f"{name}.json_object"] = ("json_object", "")
    if given.regex is not None:
        wanted[f"{name}.regex"] = ("regex", given.regex)
    if given.choice is not None:
        wanted[f"{name}.choice"] = ("choice", tuple(given.choice))
    return wanted


def schema_text(path: str, given: dict[str, Any] | str) -> str:
    """A schema as JSON. Raises: InvalidRequest that names `path`."""
    if isinstance(given, str):
        return given
    try:
        text = json.dumps(given, ensure_ascii=False, allow_nan=False)
        text.encode()
    except RecursionError:
        raise InvalidRequest(f"{path} is nested too deeply", param=path) from None
    except ValueError:  # NaN, half of a surrogate pair
        raise InvalidRequest(f"{path} cannot be written as JSON", param=path) from None
    return text


def _field(path: str) -> str:
    return path.removesuffix(".json_schema.schema")
