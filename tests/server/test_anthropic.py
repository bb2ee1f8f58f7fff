"""Anthropic's Messages API through the real `anthropic` client."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import anthropic
import pytest
from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsBase

from fakes import FakeModel, answer
from server.bodies import PNG, Connect
from server.test_openai_client import running
from tests.e2e.server_process import LIMIT_S
from vl2.core.errors import CapacityError, EngineError
from vl2.core.secret import Secret
from vl2.core.types import FinishReason
from vl2.server.anthropic.schema import CountRequest, MessagesRequest
from vl2.server.fields import table

PNG_BLOCK: Any = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()},
}
ASK: Any = [{"role": "user", "content": [PNG_BLOCK, {"type": "text", "text": "What is it?"}]}]
TOOL: Any = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = '{"name": "weather", "arguments": {"city": "Bern"}}'


@pytest.fixture
def api() -> Iterator[Any]:
    with ExitStack() as stack:

        def connect_to(model: FakeModel | None = None, key: str = "k", **config: Any) -> anthropic.Anthropic:
            url = stack.enter_context(running(model or FakeModel(), **config)).removesuffix("/v1")
            return anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, timeout=LIMIT_S)

        yield connect_to


@pytest.mark.parametrize(
    ("sent", "model"), [(MessageCreateParamsBase, MessagesRequest), (MessageCountTokensParams, CountRequest)]
)
def test_every_field_of_the_client_is_in_a_class(sent: Any, model: Any) -> None:
    assert set(sent.__annotations__) <= {row.path for row in table(model)}


def test_a_question_about_a_picture(api: Any) -> None:
    model = FakeModel()
    message = api(model).messages.create(
        model="fake", max_tokens=9, system="Be brief.", messages=ASK, extra_body={"top_k": 3}
    )
    assert message.content[0].text == "A red square."
    assert (message.stop_reason, message.role, message.id[:4]) == ("end_turn", "assistant", "msg_")
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (8, 2)
    messages, params = model.asked[0]
    assert [(m.role, m.content) for m in messages] == [("system", "Be brief."), ("user", "<image>\nWhat is it?")]
    assert messages[1].images == (PNG,) and (params.max_tokens, params.top_k) == (9, 3)


def test_a_stream_is_what_the_client_accumulates(api: Any) -> None:
    with api().messages.stream(model="fake", max_tokens=9, messages=ASK) as stream:
        assert "".join(stream.text_stream) == "A red square."
        message = stream.get_final_message()
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 4)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_used(api: Any, stream: bool) -> None:
    fields: Any = dict(model="fake", max_tokens=50, messages=ASK, tools=[TOOL], tool_choice={"type": "any"})
    api = api(FakeModel(lambda messages, params: answer(CALL)))
    if stream:
        with api.messages.stream(**fields) as running_stream:
            message = running_stream.get_final_message()
    else:
        message = api.messages.create(**fields)
    block = message.content[0]
    assert (message.stop_reason, block.type, block.name, block.input) == (
        "tool_use",
        "tool_use",
        "weather",
        {"city": "Bern"},
    )


def test_a_tool_result_goes_back_with_its_picture(api: Any) -> None:
    model = FakeModel()
    turns: Any = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {"a": 1}}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [PNG_BLOCK, {"type": "text", "text": "7"}]}
            ],
        },
    ]
    api(model).messages.create(model="fake", max_tokens=9, messages=turns)
    messages = model.asked[0][0]
    assert messages[1].content == '{"name": "weather", "arguments": {"a": 1}}'
    assert messages[2].content == "The result of weather: <image>\n7\n"


@pytest.mark.parametrize(
    ("finish", "stop_string", "reason"),
    [(FinishReason.LENGTH, None, "max_tokens"), (FinishReason.STOP, "END", "stop_sequence")],
)
@pytest.mark.parametrize("stream", [False, True])
def test_why_it_stopped(api: Any, finish: FinishReason, stop_string: str | None, reason: str, stream: bool) -> None:
    import dataclasses

    deltas = answer("A red", finish_reason=finish)
    deltas[-1] = dataclasses.replace(deltas[-1], stop_string=stop_string)
    fields: Any = dict(model="fake", max_tokens=9, messages=ASK, stop_sequences=["END"])
    api = api(FakeModel(deltas))
    if stream:
        with api.messages.stream(**fields) as running_stream:
            message = running_stream.get_final_message()
    else:
        message = api.messages.create(**fields)
    assert (message.stop_reason, message.stop_sequence) == (reason, stop_string)


def test_tokens_are_counted(api: Any) -> None:
    assert api().messages.count_tokens(model="fake", messages=ASK).input_tokens == 14


def test_a_pdf_comes_as_pages(api: Any) -> None:
    model = FakeModel()
    source = {"type": "base64", "media_type": "application/pdf", "data": base64.b64encode(b"%PDF-1.4 x").decode()}
    document: Any = {"type": "document", "source": source, "pages": "3,4"}
    api(model).messages.create(model="fake", max_tokens=9, messages=[{"role": "user", "content": [document]}])
    assert [picture.getpixel((0, 0))[0] for picture in model.asked[0][0][0].images] == [3, 4]


def test_a_document_s_title_and_context_are_told_before_it(api: Any) -> None:
    model = FakeModel()
    source = {"type": "text", "media_type": "text/plain", "data": "Seven degrees."}
    document: Any = {"type": "document", "source": source, "title": "Weather", "context": "Of today."}
    ask: Any = {"model": "fake", "max_tokens": 9}
    api = api(model)
    api.messages.create(messages=[{"role": "user", "content": [document]}], **ask)
    assert model.asked[0][0][0].content == "Weather\nOf today.\nSeven degrees."
    document["citations"] = {"enabled": True}
    with pytest.raises(anthropic.BadRequestError, match=r"content\[0\].citations is not supported"):
        api.messages.create(messages=[{"role": "user", "content": [document]}], **ask)


def test_the_client_knows_the_request_s_id(api: Any) -> None:
    fields: Any = dict(model="fake", max_tokens=9, messages=ASK, extra_headers={"X-Request-Id": "mine-1"})
    assert api().messages.create(**fields)._request_id == "mine-1"
    with pytest.raises(anthropic.NotFoundError) as caught:
        api().messages.create(**fields | {"model": "other"})
    assert caught.value.request_id == "mine-1"


def test_the_client_raises_its_own_errors(api: Any) -> None:
    locked = api(api_key=(Secret("right"),), key="wrong")
    with pytest.raises(anthropic.AuthenticationError) as wrong:
        locked.messages.create(model="fake", max_tokens=1, messages=ASK)
    assert wrong.value.body["error"]["type"] == "authentication_error"
    with pytest.raises(anthropic.BadRequestError, match=r"thinking is not supported") as bad:
        api().messages.create(
            model="fake", max_tokens=1, messages=ASK, thinking={"type": "enabled", "budget_tokens": 1024}
        )
    assert bad.value.body["type"] == "error"
    with pytest.raises(anthropic.NotFoundError):
        api().messages.create(model="other", max_tokens=1, messages=ASK)
    with pytest.raises(anthropic.RateLimitError):
        api(FakeModel([CapacityError("full")])).messages.create(model="fake", max_tokens=1, messages=ASK)
    broken = api(FakeModel([*answer("A red square.")[:2], EngineError("the engine died")]))
    with (
        pytest.raises(anthropic.APIStatusError, match="the engine died"),
        broken.messages.stream(model="fake", max_tokens=9, messages=ASK) as stream,
    ):
        stream.until_done()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"messages": []}, "at least one entry"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name is missing"),
        ({"tool_choice": {"type": "any"}}, "there are no tools"),
        ({"nothing": 1}, "not a field"),
        ({"messages": [{"role": "system", "content": "x"}]}, "'system', but must be 'user' or 'assistant'"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]}, "tool_use_id"),
    ],
)
async def test_what_is_wrong_is_told_in_anthropic_s_shape(connect: Connect, fields: Any, words: str) -> None:
    body = {"max_tokens": 5, "messages": [{"role": "user", "content": "x"}]} | fields
    response = await connect().post("/v1/messages", json=body)
    assert response.status_code == 400
    assert (response.json()["type"], response.json()["error"]["type"]) == ("error", "invalid_request_error")
    assert words in response.json()["error"]["message"]
