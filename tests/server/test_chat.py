"""Chat completions through the app, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from fakes import FakeModel, answer, token_text
from server.bodies import PNG, PNG_URL, Connect, chat, image_part, text_part
from vl2.core.errors import (
    CapacityError,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    NotReady,
)
from vl2.core.types import (
    Box,
    Delta,
    FinishReason,
    Grammar,
    GroundedObject,
    ImagePart,
    Message,
    QueueOptions,
    SamplingParams,
)

URL = "/v1/chat/completions"
CAT = GroundedObject("the cat", (Box(10, 20, 30, 40),), ((100, 200, 300, 400),))
CAT_JSON = [{"label": "the cat", "boxes": [[10, 20, 30, 40]], "boxes_norm": [[100, 200, 300, 400]]}]


def events(response: httpx.Response) -> list[Any]:
    """Bodies of the events of a stream; it must end in [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_an_answer_has_openai_s_shape(connect: Connect) -> None:
    body = (await connect(FakeModel()).post(URL, json=chat())).json()
    assert body.pop("id").startswith("chatcmpl-")
    assert body.pop("created") > 1_700_000_000
    assert body == {
        "object": "chat.completion",
        "model": "fake",
        "system_fingerprint": "vl2-d-test",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "A red square.", "refusal": None, "grounding": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 4,
            "total_tokens": 14,
            "prompt_tokens_details": {"image_tokens": 4, "cached_tokens": 2},
        },
    }


async def test_a_stream_starts_with_the_role_and_folds_to_the_whole_answer(connect: Connect) -> None:
    chunks = events(await connect().post(URL, json=chat(stream=True)))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "A red square."
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert not any("usage" in chunk for chunk in chunks)


async def test_include_usage_adds_a_last_chunk_without_choices(connect: Connect) -> None:
    chunks = events(await connect().post(URL, json=chat(stream=True, stream_options={"include_usage": True})))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"image_tokens": 4, "cached_tokens": 2}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


async def test_each_of_n_choices_has_its_own_role_chunk_and_finish_reason(connect: Connect) -> None:
    chunks = events(await connect().post(URL, json=chat(stream=True, n=2)))
    for idx in range(2):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == idx]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"].get("content", "") for choice in own) == "A red square."
        assert own[-1]["finish_reason"] == "stop"


async def test_logprobs_carry_bytes_and_alternatives(connect: Connect) -> None:
    body = (await connect().post(URL, json=chat(logprobs=True, top_logprobs=2))).json()
    entry = body["choices"][0]["logprobs"]["content"][1]
    assert entry["token"] == "red "
    assert bytes(entry["bytes"]) == b"red "
    assert [top["logprob"] for top in entry["top_logprobs"]] == [-0.5, -1.5]


async def test_an_impossible_token_s_logprob_is_a_number_that_json_has(connect: Connect) -> None:
    last = answer("x", logprobs=0)[-1]
    deltas = [Delta(text="x", token_ids=(5,), logprobs=(token_text(5, "x", logprob=float("-inf")),)), last]
    body = (await connect(FakeModel(deltas)).post(URL, json=chat(logprobs=True))).json()
    assert body["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0


@pytest.mark.parametrize("stream", [False, True])
async def test_return_token_ids_gives_the_prompt_s_and_each_choice_s(connect: Connect, stream: bool) -> None:
    response = await connect().post(URL, json=chat(stream=stream, return_token_ids=True))
    bodies = events(response) if stream else [response.json()]
    assert bodies[0]["prompt_token_ids"] == [0, 7, 8]
    assert [i for body in bodies for i in body["choices"][0].get("token_ids", [])] == [100, 101, 102, 1]


async def test_boxes_come_with_the_message_and_in_a_stream_with_the_last_delta(connect: Connect) -> None:
    text = "<|ref|>the cat<|/ref|><|det|>[[100, 200, 300, 400]]<|/det|>"
    client = connect(FakeModel(answer(text, grounding=(CAT,))))
    message = (await client.post(URL, json=chat())).json()["choices"][0]["message"]
    assert (message["content"], message["grounding"]) == (text, CAT_JSON)
    assert events(await client.post(URL, json=chat(stream=True)))[-1]["choices"][0]["delta"]["grounding"] == CAT_JSON


async def test_the_end_of_max_tokens_is_told(connect: Connect) -> None:
    model = FakeModel(answer("A red", finish_reason=FinishReason.LENGTH))
    assert (await connect(model).post(URL, json=chat())).json()["choices"][0]["finish_reason"] == "length"


# ---- what reaches the model -----------------------------------------------------------------------------------------


async def asked(connect: Connect, body: dict[str, Any]) -> tuple[list[Message], SamplingParams]:
    model = FakeModel()
    response = await connect(model).post(URL, json=body)
    assert response.status_code == 200, response.text
    return model.asked[0]


async def test_without_parameters_the_model_gets_the_defaults(connect: Connect) -> None:
    nulls = dict.fromkeys(("temperature", "seed", "stop", "logit_bias", "max_tokens", "stream", "tools", "n", "user"))
    assert (await asked(connect, chat()))[1] == SamplingParams()
    assert (await asked(connect, chat(**nulls)))[1] == SamplingParams()


async def test_every_parameter_arrives(connect: Connect) -> None:
    same = {"temperature": 0.5, "top_p": 0.9, "presence_penalty": 0.1, "frequency_penalty": 0.2, "seed": 7, "n": 2}
    same |= {"min_p": 0.1, "repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "ignore_eos": True, "top_k": 40}
    other = {"max_tokens": 9, "stop": ["a", "b"], "stop_token_ids": [5], "logit_bias": {"12": -100}}
    _, params = await asked(connect, chat(**same, **other, logprobs=True, top_logprobs=20))
    assert params == SamplingParams(
        **same, max_tokens=9, stop=("a", "b"), stop_token_ids=(5,), logit_bias={12: -100.0}, logprobs=20
    )


@pytest.mark.parametrize(
    ("field", "value", "name", "wanted"),
    [
        ("top_k", -1, "top_k", 0),
        ("top_k", 0, "top_k", 0),
        ("stop", "END", "stop", ("END",)),
        ("max_completion_tokens", 5, "max_tokens", 5),
        ("logprobs", True, "logprobs", 0),
        ("logprobs", False, "logprobs", None),
        ("temperature", 1, "temperature", 1),
    ],
)
async def test_spellings(connect: Connect, field: str, value: Any, name: str, wanted: Any) -> None:
    assert getattr((await asked(connect, chat(**{field: value})))[1], name) == wanted


SCHEMA = {"type": "object", "properties": {"colour": {"type": "string"}}}
SCHEMA_TEXT = json.dumps(SCHEMA)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"response_format": {"type": "text"}, "grounding": False}, None),
        ({"response_format": {"type": "json_object"}}, Grammar("json_object")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": SCHEMA, "strict": True},
                }
            },
            Grammar("json_schema", SCHEMA_TEXT),
        ),
        ({"guided_json": SCHEMA}, Grammar("json_schema", SCHEMA_TEXT)),
        ({"guided_json": SCHEMA_TEXT}, Grammar("json_schema", SCHEMA_TEXT)),
        ({"guided_choice": ["yes", "no"]}, Grammar("choice", ("yes", "no"))),
        ({"guided_regex": "[0-9]+"}, Grammar("regex", "[0-9]+")),
        ({"structured_outputs": {"json": SCHEMA}}, Grammar("json_schema", SCHEMA_TEXT)),
        ({"structured_outputs": {"json": SCHEMA_TEXT, "regex": None}}, Grammar("json_schema", SCHEMA_TEXT)),
        ({"structured_outputs": {"json_object": True}}, Grammar("json_object")),
        ({"structured_outputs": {"json_object": False}}, None),
        ({"structured_outputs": {"regex": "[0-9]+"}}, Grammar("regex", "[0-9]+")),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, Grammar("choice", ("yes", "no"))),
        ({"grounding": True}, Grammar("grounding")),
    ],
)
async def test_what_shapes_an_answer_becomes_a_grammar(
    connect: Connect, fields: dict[str, Any], wanted: Grammar | None
) -> None:
    assert (await asked(connect, chat(**fields)))[1].grammar == wanted


async def test_what_is_wrong_with_a_grammar_is_told_by_the_field_it_came_in(connect: Connect) -> None:
    client = connect(FakeModel([InvalidRequest("the schema cannot be used: Invalid type: x", param="grammar")]))
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}}
    error = (await client.post(URL, json=chat(response_format=form))).json()["error"]
    assert (error["param"], error["code"]) == ("response_format.json_schema.schema", "invalid_request")


async def test_parts_become_a_message_with_pictures_where_they_stand(connect: Connect) -> None:
    messages, _ = await asked(connect, chat([text_part("Look: "), image_part(), text_part("What?")]))
    assert messages == [Message.from_parts("user", ["Look: ", ImagePart(PNG), "What?"])]
    assert messages[0].content == "Look: <image>\nWhat?"


async def test_an_answer_can_be_sent_back_as_it_came(connect: Connect) -> None:
    client = connect(FakeModel(answer("Yes.", grounding=(CAT,))))
    message = (await client.post(URL, json=chat())).json()["choices"][0]["message"]
    body = {"messages": [{"role": "developer", "content": "Be brief."}, *chat()["messages"], message]}
    messages, _ = await asked(connect, body)
    assert [(m.role, m.content) for m in messages] == [
        ("system", "Be brief."),
        ("user", "What is it?"),
        ("assistant", "Yes."),
    ]


async def test_hints_are_taken_and_change_nothing(connect: Connect) -> None:
    hints = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "response_format": {"type": "text"},
    }
    hints |= {"parallel_tool_calls": False, "tool_choice": "none", "tools": [], "modalities": ["text"]}
    assert (await asked(connect, chat(**hints)))[1] == SamplingParams()


async def test_fields_of_vllm_that_ask_for_what_happens_anyway_are_taken(connect: Connect) -> None:
    same = {"skip_special_tokens": False, "spaces_between_special_tokens": False, "min_tokens": 0}
    same |= {"include_stop_str_in_output": False, "continue_final_message": False, "add_generation_prompt": True}
    assert (await asked(connect, chat(**same)))[1] == SamplingParams()
    messages = [*chat()["messages"], {"role": "assistant", "content": "It is"}]
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    assert (await asked(connect, {"messages": messages} | fields))[0][-1].content == "It is"


async def test_an_assistant_that_said_nothing_may_be_null(connect: Connect) -> None:
    silent = {"role": "assistant", "content": None, "tool_calls": None}
    messages, _ = await asked(connect, {"messages": [*chat()["messages"], silent, *chat()["messages"]]})
    assert messages[1] == Message("assistant", "")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": PNG_URL},
        image_part(PNG_URL.replace("base64,", "base64,\n")),
        image_part(PNG_URL[:60] + "\r\n " + PNG_URL[60:] + "\n"),
    ],
)
async def test_a_picture_s_url_may_be_a_plain_string_and_its_base64_have_line_breaks(
    connect: Connect, part: dict[str, Any]
) -> None:
    messages, _ = await asked(connect, chat([part]))
    assert messages[0].images == (PNG,)


@pytest.mark.parametrize("name", ["fake", "default", None])
async def test_the_model_s_own_name_default_and_none_are_served(connect: Connect, name: str | None) -> None:
    await asked(connect, chat(model=name))


async def test_the_served_name_replaces_the_model_s(connect: Connect) -> None:
    client = connect(served_model_name="shop/vl2")
    assert (await client.post(URL, json=chat(model="shop/vl2"))).json()["model"] == "shop/vl2"
    assert (await client.post(URL, json=chat(model="fake"))).status_code == 404
    assert (await client.get("/v1/models")).json()["data"][0]["id"] == "shop/vl2"
    assert (await client.get("/v1/models/shop/vl2")).json()["max_model_len"] == 4096


# ---- when the model fails -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (ContextLengthExceeded("9000 tokens, 4096 fit", param="messages"), 400, "invalid_request_error"),
        (CapacityError("512 requests wait", retry_after_s=2.5), 429, "rate_limit_error"),
        (NotReady("starting again"), 503, "service_unavailable_error"),
        (DeadlineExceeded("too late"), 504, "timeout_error"),
        (EngineError("out of luck"), 500, "server_error"),
    ],
)
async def test_an_error_before_the_first_token_has_a_status(
    connect: Connect, error: Exception, status: int, kind: str, stream: bool
) -> None:
    response = await connect(FakeModel([error])).post(URL, json=chat(stream=stream))
    assert response.status_code == status
    assert response.json()["error"]["type"] == kind
    assert response.json()["error"]["message"] == str(error)
    if status == 429:
        assert response.headers["retry-after"] == "3"


async def test_an_error_in_mid_stream_becomes_an_event_and_the_stream_ends(connect: Connect) -> None:
    model = FakeModel([*answer("A red square.")[:2], EngineError("the engine died")])
    chunks = events(await connect(model).post(URL, json=chat(stream=True)))
    assert chunks[-1] == {
        "error": {"message": "the engine died", "type": "server_error", "param": None, "code": "engine_error"}
    }


async def test_a_bug_in_mid_stream_tells_the_client_nothing_but_a_request_id(connect: Connect) -> None:
    model = FakeModel([*answer("A red square.")[:2], ZeroDivisionError("secret")])
    response = await connect(model).post(URL, json=chat(stream=True), headers={"X-Request-Id": "r-1"})
    message = events(response)[-1]["error"]["message"]
    assert "secret" not in message
    assert "r-1" in message


@pytest.mark.parametrize("script", [[], answer("cut short")[:1], [Delta(text="x", finish_reason=FinishReason.ABORT)]])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_without_an_end_is_an_error(connect: Connect, script: list[Delta], stream: bool) -> None:
    response = await connect(FakeModel(script)).post(URL, json=chat(stream=stream))
    body = events(response)[-1] if response.status_code == 200 else response.json()
    assert body["error"]["code"] == "engine_error"


async def test_while_the_model_loads_questions_are_answered_503(connect: Connect) -> None:
    response = await connect(FakeModel(is_ready=False)).post(URL, json=chat([image_part(PNG_URL)]))
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"


async def test_priority_deadline_and_salt_reach_the_queue(connect: Connect) -> None:
    model = FakeModel()
    fields = {"priority": -1, "deadline_s": 2.5, "cache_salt": "tenant a"}
    assert (await connect(model).post(URL, json=chat(**fields))).status_code == 200
    assert model.options == [QueueOptions(priority=-1, deadline_s=2.5, cache_salt="tenant a")]
    refused = await connect(model).post(URL, json=chat(deadline_s=0))
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "deadline_s"
