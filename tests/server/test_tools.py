"""Tool calls: what the model is told, what it may say, and how its call is read, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import FakeModel, answer
from server.bodies import Connect, chat
from server.test_chat import asked, events
from vl2.core.types import Delta, FinishReason, Grammar
from vl2.processing.constrain import check_grammar
from vl2.server.tools import CallReader, Tool, Tools, read_call

URL = "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": SCHEMA}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALL = '{"name": "weather", "arguments": {"city": "Bern {}"}}'


async def test_a_call_is_read_from_the_answer(connect: Connect) -> None:
    body = (await connect(FakeModel(answer(CALL))).post(URL, json=chat(tools=[WEATHER]))).json()
    choice = body["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Bern {}"}


async def test_a_streamed_call_folds_to_the_same(connect: Connect) -> None:
    chunks = events(await connect(FakeModel(answer(CALL))).post(URL, json=chat(tools=[WEATHER], stream=True)))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert calls[0]["id"].startswith("call_") and calls[0]["function"]["name"] == "weather"
    assert "".join(call["function"]["arguments"] for call in calls) == '{"city": "Bern {}"}'
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert not any(delta.get("content") for delta in deltas)


@pytest.mark.parametrize("stream", [False, True])
async def test_text_stays_text(connect: Connect, stream: bool) -> None:
    response = await connect().post(URL, json=chat(tools=[WEATHER], stream=stream))
    chunks = events(response) if stream else [response.json()]
    messages = [chunk["choices"][0]["delta" if stream else "message"] for chunk in chunks]
    assert "".join(message.get("content") or "" for message in messages) == "A red square."
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("choice", "kind", "names"),
    [
        (None, "text_or_json", ["weather", "clock"]),
        ("auto", "text_or_json", ["weather", "clock"]),
        ("required", "json_schema", ["weather", "clock"]),
        ({"type": "function", "function": {"name": "clock"}}, "json_schema", ["clock"]),
    ],
)
async def test_the_grammar_allows_what_was_chosen(connect: Connect, choice: Any, kind: str, names: list[str]) -> None:
    messages, params = await asked(connect, chat(tools=[WEATHER, CLOCK], tool_choice=choice))
    assert params.grammar is not None and params.grammar.kind == kind
    schema = json.loads(str(params.grammar.spec))
    calls = schema.get("anyOf", [schema])
    assert [call["properties"]["name"]["const"] for call in calls] == names
    check_grammar(params.grammar)
    assert messages[0].role == "system" and '"weather"' in messages[0].content


async def test_no_tools_may_be_called_with_none(connect: Connect) -> None:
    messages, params = await asked(connect, chat(tools=[WEATHER], tool_choice="none"))
    assert params.grammar is None and [message.role for message in messages] == ["user"]


async def test_a_call_and_its_result_go_back_into_the_conversation(connect: Connect) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
    turns = [
        *chat()["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "7 degrees"},
    ]
    messages, _ = await asked(connect, {"messages": turns, "tools": [WEATHER]})
    assert [(m.role, m.content) for m in messages[2:]] == [
        ("assistant", '{"name": "weather", "arguments": {"city": "Bern"}}'),
        ("user", "The result of weather: 7 degrees"),
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, "tools"),
        ({"messages": [{"role": "tool", "tool_call_id": "c9", "content": "x"}]}, "messages[0].tool_call_id"),
    ],
)
async def test_what_makes_no_sense_is_refused(connect: Connect, fields: dict[str, Any], param: str) -> None:
    response = await connect().post(URL, json=chat() | fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@given(
    st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers(), max_size=3),
    st.sampled_from(["", " ", "\n"]),
    st.lists(st.integers(1, 7)),
)
def test_a_call_is_read_the_same_however_it_is_cut(arguments: dict[str, Any], space: str, sizes: list[int]) -> None:
    written = json.dumps(arguments)
    text = space + '{"name": "weather", "arguments": ' + written + "}" + space
    assert read_call(text) == ("weather", written)
    reader, start, found = CallReader(), 0, []
    for end in [*(sum(sizes[: i + 1]) for i in range(len(sizes))), len(text)]:
        is_last = end >= len(text)
        shown, calls = reader.push(Delta(text=text[start:end], finish_reason=FinishReason.STOP if is_last else None))
        assert not shown.strip()
        found += calls
        start = end
        if is_last:
            break
    assert [call.name for call in found if call.name] == ["weather"]
    assert json.loads("".join(call.arguments for call in found)) == arguments


def test_the_schema_of_every_tool_is_followed() -> None:
    check_grammar(Tools((Tool("a", "", {"type": "object"}), Tool("b", "", SCHEMA))).grammar())
    assert isinstance(Tools((Tool("a", "", SCHEMA),), "a").grammar(), Grammar)
