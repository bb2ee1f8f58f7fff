"""The Responses API through the real `openai` client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from fakes import FakeModel, answer
from server.bodies import PNG, PNG_URL, Connect
from server.test_openai_client import client, running
from vl2.core.errors import EngineError
from vl2.core.types import FinishReason, ImagePart
from vl2.server.fields import table
from vl2.server.responses.schema import ResponseRequest

PICTURE: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "input_image", "image_url": PNG_URL, "detail": "low"},
            {"type": "input_text", "text": "What is it?"},
        ],
    }
]
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
CALL = '{"name": "weather", "arguments": {"city": "Bern"}}'


@pytest.fixture
def api() -> Iterator[Any]:
    """`api(model, flags…)` → a client of a running server."""
    with ExitStack() as stack:
        yield lambda model=None, **config: client(stack.enter_context(running(model or FakeModel(), **config)))


def told(model: FakeModel) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in model.asked[-1][0]]


def test_every_field_of_the_client_is_in_a_class() -> None:
    assert set(ResponseCreateParamsBase.__annotations__) <= {row.path for row in table(ResponseRequest)}


def test_a_question_about_a_picture(api: Any) -> None:
    model = FakeModel()
    response = api(model).responses.create(
        model="fake", input=PICTURE, instructions="Be brief.", max_output_tokens=9, metadata={"a": "b"}
    )
    assert response.output_text == "A red square."
    assert (response.status, response.metadata, response.instructions) == ("completed", {"a": "b"}, "Be brief.")
    assert response.usage is not None and response.usage.total_tokens == 14
    assert told(model) == [("system", "Be brief."), ("user", "<image>\nWhat is it?")]
    assert model.asked[0][0][1].images == (ImagePart(PNG, is_low_detail=True),)
    assert model.asked[0][1].max_tokens == 9


def test_a_stream_builds_the_response(api: Any) -> None:
    with api().responses.stream(model="fake", input="Hi", top_logprobs=1) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert final.output_text == "A red square."
    logprobs = final.output[0].content[0].logprobs
    assert "".join(entry.token for entry in logprobs) == "A red square."


def test_an_answer_that_is_cut_by_its_length_is_incomplete(api: Any) -> None:
    model = FakeModel(lambda messages, params: answer("A red", finish_reason=FinishReason.LENGTH))
    api = api(model)
    whole = api.responses.create(model="fake", input="Hi")
    with api.responses.stream(model="fake", input="Hi") as stream:
        last = list(stream)[-1]
    for response in (whole, last.response):
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_a_stream_that_breaks_ends_with_a_failed_response(api: Any) -> None:
    model = FakeModel([*answer("A red square.")[:2], EngineError("the engine died")])
    events = list(api(model).responses.create(model="fake", input="Hi", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.message == "the engine died"


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_goes_on_from_its_last_response(api: Any, stream: bool) -> None:
    model = FakeModel()
    api = api(model)
    if stream:
        first = list(api.responses.create(model="fake", input="One", instructions="x", stream=True))[-1].response
    else:
        first = api.responses.create(model="fake", input="One", instructions="x")
    second = api.responses.create(model="fake", input="Two", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert told(model) == [("user", "One"), ("assistant", "A red square."), ("user", "Two")]
    api.responses.create(model="fake", input="Three", previous_response_id=second.id)
    assert [content for _, content in told(model)] == ["One", "A red square.", "Two", "A red square.", "Three"]


def test_responses_are_read_listed_and_forgotten(api: Any) -> None:
    api = api(node_name="n7")
    made = api.responses.create(model="fake", input="One")
    assert made.id.startswith("resp_n7_")
    assert api.responses.retrieve(made.id).output_text == "A red square."
    assert api.responses.input_items.list(made.id).data[0].content[0].text == "One"
    with pytest.raises(openai.BadRequestError, match="background"):
        api.responses.cancel(made.id)
    api.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve(made.id)
    kept_not = api.responses.create(model="fake", input="One", store=False)
    with pytest.raises(openai.NotFoundError):
        api.responses.create(model="fake", input="x", previous_response_id=kept_not.id)
    with pytest.raises(openai.NotFoundError, match="belongs to the node 'n8'"):
        api.responses.retrieve("resp_n8_" + "0" * 32)


def test_only_the_newest_are_kept(api: Any) -> None:
    api = api(max_stored_responses=2)
    ids = [api.responses.create(model="fake", input=str(idx)).id for idx in range(3)]
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve(ids[0])
    assert api.responses.retrieve(ids[2]).id == ids[2]


@pytest.mark.parametrize(
    "fields",
    [
        {"instructions": " " * 100_000},
        {"tools": [TOOL | {"description": "x" * 100_000}], "tool_choice": "none"},
        {"input": [{"role": "user", "content": "Hi", "id": "x" * 100_000}]},
    ],
)
async def test_whatever_a_client_can_make_long_counts(fields: dict[str, Any], connect: Connect) -> None:
    """So that what is kept stays within its limit. What has no place at all pushes nobody else out."""
    client = connect(max_stored_response_bytes=50_000)
    short = (await client.post("/v1/responses", json={"input": "x"})).json()
    long = (await client.post("/v1/responses", json={"input": "x"} | fields)).json()
    statuses = [(await client.get(f"/v1/responses/{response['id']}")).status_code for response in (short, long)]
    assert statuses == [200, 404]


def test_a_call_and_its_output(api: Any) -> None:
    model = FakeModel(lambda messages, params: answer(CALL if len(messages) < 3 else "Seven degrees."))
    api = api(model)
    first = api.responses.create(model="fake", input="Weather?", tools=[TOOL])
    call = first.output[0]
    assert (call.type, call.name, call.arguments) == ("function_call", "weather", '{"city": "Bern"}')
    output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "7"}]
    second = api.responses.create(model="fake", input=output, tools=[TOOL], previous_response_id=first.id)
    assert second.output_text == "Seven degrees."
    assert told(model)[1:] == [("user", "Weather?"), ("assistant", CALL), ("user", "The result of the call: 7")]


def test_a_call_s_output_may_be_a_picture(api: Any) -> None:
    model = FakeModel()
    output: Any = {"type": "function_call_output", "call_id": "c", "output": PICTURE[0]["content"]}
    call: Any = {"type": "function_call", "call_id": "c", "name": "camera", "arguments": "{}"}
    api(model).responses.create(model="fake", input=[{"role": "user", "content": "Look."}, call, output])
    assert told(model)[-1] == ("user", "The result of camera: <image>\nWhat is it?")
    assert model.asked[0][0][-1].images == (ImagePart(PNG, is_low_detail=True),)


def test_a_streamed_call(api: Any) -> None:
    with api(FakeModel(answer(CALL))).responses.stream(model="fake", input="Weather?", tools=[TOOL]) as stream:
        final = stream.get_final_response()
    assert final.output[0].arguments == '{"city": "Bern"}'


def test_a_schema_is_followed(api: Any) -> None:
    model = FakeModel(lambda messages, params: answer('{"a":1}'))
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}}
    api(model).responses.create(model="fake", input="x", text=form)
    grammar = model.asked[0][1].grammar
    assert grammar is not None and (grammar.kind, grammar.spec) == ("json_schema", '{"type": "object"}')


def test_the_input_is_counted(api: Any) -> None:
    assert api().responses.input_tokens.count(model="fake", input=PICTURE).input_tokens == 14


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning"}]}, "input[0]"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "conversation": "c"}, "conversation"),
        ({"input": "x", "nothing": 1}, "nothing"),
        ({"input": "x", "top_logprobs": 30}, "top_logprobs"),
        ({"input": "x", "metadata": {"a": "x" * 513}}, "metadata"),
        ({"input": "x", "metadata": {str(idx): "x" for idx in range(17)}}, "metadata"),
        ({"input": "x", "reasoning": {"effort": "high"}}, "reasoning"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
    ],
)
async def test_what_is_wrong_is_named(connect: Connect, body: dict[str, Any], param: str) -> None:
    response = await connect().post("/v1/responses", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
