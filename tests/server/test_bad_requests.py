"""Whatever is sent, the answer is a 4xx in OpenAI's shape that names what is wrong, and others are served on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.bodies import Connect, chat, image_part, text_part

URL = "/v1/chat/completions"


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"} | fields]}


CASES = [
    # the body, `param`, words of the message
    ({}, "messages", "messages is missing"),
    ({"messages": []}, "messages", "at least one entry"),
    ({"messages": "hi"}, "messages", "'hi', but must be a list"),
    (message(role="robot"), "messages[0].role", "'robot', but must be 'system', 'developer', 'user', 'assistant' or"),
    (message(content=7), "messages[0].content", "a string or a list of parts"),
    (message(content=None), "messages[0].content", "a string or a list of parts"),
    (message(content=[{"type": "input_audio"}]), "messages[0].content[0]", "'text', 'image_url' or 'file'"),
    (message(content=[{"type": "text"}]), "messages[0].content[0].text", "is missing"),
    (
        message(content=[text_part("a"), {"type": "image_url", "image_url": {}}]),
        "messages[0].content[1].image_url.url",
        "",
    ),
    (message(tool_calls=[{}]), "messages[0].tool_calls[0].id", "is missing"),
    (message(content="<image>"), "messages", "1 <image> tags but 0 pictures"),
    (message(content="\ud800"), "messages[0].content", "surrogate"),
    (chat(max_tokens=0), "max_tokens", "max_tokens is 0, but must be at least 1"),
    (chat(max_completion_tokens=-1), "max_completion_tokens", "at least 1"),
    (chat(max_tokens=10**30), "max_tokens", "less than"),
    (chat(max_tokens="many"), "max_tokens", "'many', but must be an integer"),
    (chat(max_tokens=True), "max_tokens", "true, but must be an integer"),
    (chat(temperature=3), "temperature", "between 0 and 2"),
    (chat(temperature=float("nan")), "temperature", "between 0 and 2"),
    (chat(top_p=0), "top_p", "above 0"),
    (chat(top_k=-2), "top_k", "at least -1"),
    (chat(n=0), "n", "between 1 and 128"),
    (chat(seed=2**64), "seed", "64-bit"),
    (chat(stop=[1]), "stop[0]", "a string"),
    (chat(stop=""), "stop", 'stop has "", but takes at most 16 non-empty strings'),
    (chat(stop=["a"] * 17), "stop", "17 strings"),
    (chat(stop_token_ids=[-1]), "stop_token_ids[0]", "at least 0"),
    (chat(logit_bias={"x": 1}), "logit_bias", "token ids"),
    (chat(logit_bias={str(i): 1000 for i in range(300)}), "logit_bias", "logit_bias[0] is 1000, but must be between"),
    (chat(top_logprobs=3), "top_logprobs", "logprobs: true"),
    (chat(logprobs=True, top_logprobs=21), "top_logprobs", "between 0 and 20"),
    (chat(stream_options={"include_usage": True}), "stream_options", "stream: true"),
    (chat(response_format={"type": "yaml"}), "response_format.type", "'yaml', but must be 'text', 'json_object' or"),
    (chat(response_format={"type": "json_schema"}), "response_format.json_schema", "is missing"),
    (
        chat(response_format={"type": "json_schema", "json_schema": {"name": "a"}}),
        "response_format.json_schema.schema",
        "is missing",
    ),
    (chat(guided_json=[1]), "guided_json", "a JSON schema, as an object or a string"),
    (chat(guided_json={"const": float("nan")}), "guided_json", "cannot be written as JSON"),
    (chat(guided_json=""), "guided_json", "must not be empty"),
    (chat(guided_regex=""), "guided_regex", "must not be empty"),
    (chat(guided_choice=[]), "guided_choice", "at least one entry"),
    (chat(guided_choice=["a", ""]), "guided_choice", "non-empty strings"),
    (chat(guided_choice=["a"], guided_regex="a"), "guided_regex", "guided_choice and guided_regex cannot be combined"),
    (
        chat(response_format={"type": "json_object"}, grounding=True),
        "grounding",
        "response_format and grounding cannot be combined",
    ),
    (chat(structured_outputs={}), "structured_outputs", "must have one of json, json_object, regex and choice"),
    (chat(structured_outputs={"grammar": "x"}), "structured_outputs.grammar", "not a field"),
    (chat(structured_outputs={"json": 1}), "structured_outputs.json", "a JSON schema, as an object or a string"),
    (chat(structured_outputs={"regex": ""}), "structured_outputs.regex", "must not be empty"),
    (
        chat(structured_outputs={"json_object": True, "regex": "a"}),
        "structured_outputs.regex",
        "structured_outputs.json_object and structured_outputs.regex cannot be combined",
    ),
    (chat(skip_special_tokens=True), "skip_special_tokens", "keeps tags such as <|ref|> in the answer"),
    (chat(include_stop_str_in_output=True), "include_stop_str_in_output", "ends before its stop string"),
    (chat(min_tokens=5), "min_tokens", "min_tokens is not supported by this server; leave it out"),
    (chat(continue_final_message=True), "continue_final_message", "is true, but the last message is not the assist"),
    (chat(add_generation_prompt=False), "add_generation_prompt", "is false, but the last message is not the assist"),
    (message(role="assistant") | {"continue_final_message": False}, "continue_final_message", "always continued"),
    (message(role="assistant") | {"add_generation_prompt": True}, "add_generation_prompt", "always continued"),
    (chat(tools=[{"type": "function"}]), "tools[0].function", "is missing"),
    (chat(audio={"voice": "x"}), "audio", "not supported"),
    (chat(temprature=1), "temprature", "did you mean temperature?"),
    (chat([image_part("data:image/png;base64,@@@@")]), "messages[0].content[0].image_url.url", "'@' at position 0"),
    (chat([image_part("data:image/png;base64,iVBORw0")]), "messages[0].content[0].image_url.url", "padded"),
    (chat([image_part("data:image/png,abc")]), "messages[0].content[0].image_url.url", "not base64"),
    (chat([image_part("data:nonsense")]), "messages[0].content[0].image_url.url", "a data URL looks like"),
    (chat([image_part("ftp://host/a.png")]), "messages[0].content[0].image_url.url", "data:, http(s): or file:"),
    (
        chat([image_part("http://127.0.0.1/a.png")]),
        "messages[0].content[0].image_url.url",
        "not on the public internet",
    ),
    (chat([image_part("file:///etc/passwd")]), "messages[0].content[0].image_url.url", "turned off"),
    (chat([image_part()] * 19), "messages", "19 pictures"),
]


@pytest.mark.parametrize(("body", "param", "words"), CASES, ids=[f"{i}-{case[1]}" for i, case in enumerate(CASES)])
async def test_a_wrong_field_is_named(connect: Connect, body: dict[str, Any], param: str, words: str) -> None:
    client = connect()
    response = await client.post(URL, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]
    assert len(error["message"]) < 300
    assert (await client.post(URL, json=chat())).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b'{"messages": [', "application/json", "not valid JSON"),
        (b'{"messages": "\xff"}', "application/json", "UTF-8"),
        (b"[" * 100_000, "application/json", "nested too deeply"),
        (b"[]", "application/json", "must be a JSON object"),
        (b"", "application/json", "no body"),
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(
    connect: Connect, content: bytes, kind: str, words: str
) -> None:
    response = await connect().post(URL, content=content, headers={"Content-Type": kind})
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_what_a_web_form_could_send_is_415(connect: Connect, kind: str) -> None:
    response = await connect().post(URL, content=json.dumps(chat()), headers={"Content-Type": kind})
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert "Content-Type: application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize("depth", [300, 940, 970, 5000])
async def test_a_schema_of_any_depth_is_taken_or_refused(connect: Connect, depth: int) -> None:
    deep = '{"a":' * depth + "1" + "}" * depth
    body = json.dumps(chat(structured_outputs={"json": "DEEP"})).replace('"DEEP"', deep)
    response = await connect().post(URL, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200 or "nested too deeply" in response.json()["error"]["message"]


async def test_an_unknown_model_is_404(connect: Connect) -> None:
    response = await connect().post(URL, json=chat(model="gpt-4o"))
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_unknown_routes_and_methods_have_openai_s_shape_too(connect: Connect) -> None:
    client = connect()
    unknown, wrong_method = await client.get("/v1/nothing"), await client.get(URL)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    assert (wrong_method.status_code, wrong_method.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong_method.headers["allow"] == "POST"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ["messages", "model", "stream", "stop", "n", "logit_bias", "max_tokens", "seed", "tools", "stream_options"]
bodies = st.dictionaries(st.sampled_from(FIELDS), anything) | st.builds(
    lambda content, extra: chat(content) | extra, anything, st.dictionaries(st.sampled_from(FIELDS[1:]), anything)
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(body=bodies)
async def test_no_json_brings_the_server_down(connect: Connect, body: Any) -> None:
    response = await connect().post(URL, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400, 404)
