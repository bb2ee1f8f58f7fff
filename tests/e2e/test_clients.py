"""The real `openai` and `anthropic` clients, feature by feature, against `vl2 serve` with its own model."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import httpx
import jsonschema
import openai
import pytest
from PIL import Image
from pydantic import BaseModel

from tests.e2e.server_process import LIMIT_S, Server, serving, wait_until

SCENE = Path(__file__).parents[2] / "docs/images/scene.png"  # "Fjord", an airplane, a sun, a green square
PNG = SCENE.read_bytes()
DATA = base64.b64encode(PNG).decode()
URL = "data:image/png;base64," + DATA
QUESTION, ANSWER = "What is in the picture?", "text, airplane, sun, green square"
CHAT = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Lyon"]}},
    "required": ["city"],
    "additionalProperties": False,
}


class Weather(BaseModel):
    sky: Literal["clear", "grey"]
    windy: bool


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    state = str(tmp_path_factory.mktemp("state"))
    with serving("nano", "--device", "cpu", "--state-dir", state, "--result-cache-bytes", "1000000") as server:
        yield server


@pytest.fixture(scope="module")
def gpt(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=LIMIT_S)


@pytest.fixture(scope="module")
def claude(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=LIMIT_S)


def pdf() -> bytes:
    """The scene as the second of two pages."""
    stream = io.BytesIO()
    scene = Image.open(io.BytesIO(PNG)).convert("RGB")
    Image.new("RGB", scene.size, "white").save(stream, "PDF", save_all=True, append_images=[scene])
    return stream.getvalue()


def asked(text: str = QUESTION, *, with_picture: bool = True) -> list[Any]:
    picture = [{"type": "image_url", "image_url": {"url": URL}}] if with_picture else []
    return [{"role": "user", "content": [*picture, {"type": "text", "text": text}]}]


def chat(gpt: openai.OpenAI, messages: list[Any] | None = None, **given: Any) -> Any:
    return gpt.chat.completions.create(model="default", messages=messages or asked(), **given)


# ---- openai: models, chat ----


def test_models(gpt: openai.OpenAI) -> None:
    assert [model.id for model in gpt.models.list()] == ["nano"] and gpt.models.retrieve("nano").id == "nano"
    with pytest.raises(openai.NotFoundError):
        gpt.models.retrieve("another")


def test_a_question_about_a_picture_whole_and_streamed(gpt: openai.OpenAI) -> None:
    whole = chat(gpt)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (ANSWER, "stop")
    with gpt.chat.completions.stream(
        model="default", messages=asked(), stream_options={"include_usage": True}
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == ANSWER and final.usage is not None
    assert final.usage.completion_tokens == whole.usage.completion_tokens


def test_choices_seeds_stops_and_lengths(gpt: openai.OpenAI) -> None:
    free = {"n": 2, "temperature": 1.2, "seed": 5, "max_tokens": 8}
    first, again = ([c.message.content for c in chat(gpt, **free).choices] for _ in range(2))
    assert first == again
    assert chat(gpt, stop=[", sun"]).choices[0].message.content == "text, airplane"
    assert chat(gpt, max_tokens=1).choices[0].finish_reason == "length"
    entries = chat(gpt, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == ANSWER
    assert all(entry.top_logprobs[0].logprob == pytest.approx(entry.logprob) for entry in entries), "greedy"


def test_an_answer_of_a_type(gpt: openai.OpenAI) -> None:
    parsed = gpt.chat.completions.parse(model="default", messages=asked(), response_format=Weather, temperature=1.5)
    assert isinstance(parsed.choices[0].message.parsed, Weather)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_and_its_result(gpt: openai.OpenAI, stream: bool) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
    given: dict[str, Any] = {"tools": [tool], "tool_choice": "required"}
    if stream:
        with gpt.chat.completions.stream(model="default", messages=asked(), **given) as events:
            message = events.get_final_completion().choices[0].message
    else:
        message = chat(gpt, **given).choices[0].message
    [call] = message.tool_calls
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
    result = {"role": "tool", "tool_call_id": call.id, "content": "It rains."}
    turns = [*asked(), message, result]  # as the client gave it
    assert chat(gpt, turns, max_tokens=3).choices[0].message.content


def test_pages_of_a_pdf(gpt: openai.OpenAI) -> None:
    file_data = "data:application/pdf;base64," + base64.b64encode(pdf()).decode()
    part = {"type": "file", "file": {"filename": "a.pdf", "file_data": file_data, "pages": "2"}}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "How many airplanes are there?"}]}]
    assert chat(gpt, messages).choices[0].message.content == "1"


def test_errors_are_the_clients_own_and_name_the_field(gpt: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(gpt, temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        gpt.chat.completions.create(model="another", messages=asked())


# ---- what we add: headers, counting, the result cache ----


def test_ids_times_deadlines_and_hints_by_header(gpt: openai.OpenAI) -> None:
    headers = {"X-Request-Id": "mine-1", "X-VL2-Timing": "1"}
    raw = gpt.chat.completions.with_raw_response.create(
        model="default", messages=asked(), extra_headers=headers, user="someone", temperature=0.5
    )
    assert raw.headers["X-Request-Id"] == "mine-1" and "user" in raw.headers["X-VL2-Ignored"]
    timing = raw.parse().usage.timing
    assert all(timing[part] >= 0 for part in ("queue_s", "vision_s", "prefill_s", "decode_s"))
    with pytest.raises(openai.APIStatusError) as caught:
        endless = {"ignore_eos": True}
        chat(gpt, max_tokens=3000, extra_headers={"X-Request-Timeout": "0.1"}, extra_body=endless)
    assert caught.value.status_code == 504


def test_the_same_question_twice_is_marked(gpt: openai.OpenAI) -> None:
    ask = {"model": "default", "messages": asked("Which colour has the star?"), "seed": 11}
    first, second = (gpt.chat.completions.with_raw_response.create(**ask) for _ in range(2))
    assert "X-VL2-Result-Cache" not in first.headers and second.headers["X-VL2-Result-Cache"] == "hit"
    assert first.parse().choices[0].message.content == second.parse().choices[0].message.content


def test_what_a_request_would_cost(server: Server, gpt: openai.OpenAI) -> None:
    used = chat(gpt).usage
    told = httpx.post(server.url + "/v1/tokenize", json={"messages": asked()}).json()
    assert told["count"] == used.prompt_tokens and told["image_tokens"] == used.prompt_tokens_details.image_tokens
    estimate = httpx.post(server.url + "/v1/estimate", json={"messages": asked(), "max_tokens": 10}).json()
    assert used.prompt_tokens in estimate.values() or estimate["count"] == used.prompt_tokens


# ---- openai: responses ----


def test_a_response_whole_and_streamed(gpt: openai.OpenAI) -> None:
    content: Any = [{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": QUESTION}]
    given: Any = [{"role": "user", "content": content}]
    response = gpt.responses.create(model="default", input=given)
    assert response.output_text == ANSWER and response.status == "completed"
    assert gpt.responses.input_tokens.count(model="default", input=given).input_tokens == response.usage.input_tokens
    with gpt.responses.stream(model="default", input=given) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == ANSWER
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    parsed = gpt.responses.parse(model="default", input=given, text_format=Weather)
    assert isinstance(parsed.output_parsed, Weather)


def test_a_conversation_is_kept_read_and_forgotten(gpt: openai.OpenAI) -> None:
    content: Any = [
        {"type": "input_image", "image_url": URL},
        {"type": "input_text", "text": "How many airplanes are there?"},
    ]
    first = gpt.responses.create(model="default", input=[{"role": "user", "content": content}])
    second = gpt.responses.create(model="default", input="And the dog?", previous_response_id=first.id)
    assert (first.output_text, second.output_text) == ("1", "0")
    assert gpt.responses.retrieve(second.id).output_text == "0"
    assert len(gpt.responses.input_items.list(second.id).data) == 1
    gpt.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        gpt.responses.retrieve(first.id)


def test_a_tool_call_in_a_response(gpt: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
    response = gpt.responses.create(model="default", input="Weather?", tools=[tool], tool_choice="required")
    [call] = [item for item in response.output if item.type == "function_call"]
    jsonschema.validate(json.loads(call.arguments), SCHEMA)
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    again = gpt.responses.create(model="default", input=[output], previous_response_id=response.id, max_output_tokens=3)
    assert again.output_text


# ---- openai: files, batches ----


def test_files_from_upload_to_deletion(gpt: openai.OpenAI) -> None:
    expires: Any = {"anchor": "created_at", "seconds": 3600}
    file = gpt.files.create(file=("scene.png", PNG), purpose="vision", expires_after=expires)
    assert gpt.files.retrieve(file.id).bytes == len(PNG) and gpt.files.content(file.id).content == PNG
    assert file.id in [entry.id for entry in gpt.files.list(purpose="vision")]
    content: Any = [{"type": "input_image", "file_id": file.id}, {"type": "input_text", "text": QUESTION}]
    assert gpt.responses.create(model="default", input=[{"role": "user", "content": content}]).output_text == ANSWER
    assert gpt.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        gpt.files.retrieve(file.id)


def test_a_batch_answers_each_line_and_another_is_cancelled(gpt: openai.OpenAI) -> None:
    def begin(num_lines: int, **given: Any) -> Any:
        bodies = [{"messages": asked() if idx % 2 else "none"} | given for idx in range(num_lines)]
        lines = [{"custom_id": f"q{i}", "method": "POST", "url": CHAT, "body": body} for i, body in enumerate(bodies)]
        data = "\n".join(map(json.dumps, lines)).encode()
        file = gpt.files.create(file=("in.jsonl", data), purpose="batch")
        return gpt.batches.create(
            input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"of": "test"}
        )

    batch = begin(6, max_tokens=20)
    wait_until(lambda: gpt.batches.retrieve(batch.id).status == "completed")
    done = gpt.batches.retrieve(batch.id)
    assert done.metadata == {"of": "test"} and (done.request_counts.completed, done.request_counts.failed) == (3, 3)
    results = [json.loads(line) for line in gpt.files.content(done.output_file_id).text.splitlines()]
    assert {entry["response"]["body"]["choices"][0]["message"]["content"] for entry in results} == {ANSWER}
    errors = [json.loads(line) for line in gpt.files.content(done.error_file_id).text.splitlines()]
    assert [entry["response"]["status_code"] for entry in errors] == [400] * 3
    long = begin(400, max_tokens=3000, ignore_eos=True, temperature=1.0)  # hours, and no answer is kept
    gpt.batches.cancel(long.id)
    wait_until(lambda: gpt.batches.retrieve(long.id).status == "cancelled")
    assert [entry.id for entry in gpt.batches.list(limit=2)][:2] == [long.id, batch.id]


# ---- anthropic ----

BLOCKS: Any = [
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}},
    {"type": "text", "text": QUESTION},
]


def test_a_message_whole_streamed_and_counted(claude: anthropic.Anthropic) -> None:
    given: Any = {"model": "default", "messages": [{"role": "user", "content": BLOCKS}]}
    message = claude.messages.create(max_tokens=40, **given)
    assert (message.content[0].text, message.stop_reason) == (ANSWER, "end_turn")
    with claude.messages.stream(max_tokens=40, **given) as stream:
        assert "".join(stream.text_stream) == ANSWER
        assert stream.get_final_message().usage.output_tokens == message.usage.output_tokens
    used = message.usage
    counted = claude.messages.count_tokens(**given).input_tokens
    assert counted == used.input_tokens + (used.cache_read_input_tokens or 0)
    cut = claude.messages.create(max_tokens=40, stop_sequences=[", sun"], **given)
    assert (cut.content[0].text, cut.stop_reason) == ("text, airplane", "stop_sequence")
    assert claude.messages.create(max_tokens=1, **given).stop_reason == "max_tokens"


def test_a_tool_is_used_and_told_its_result(claude: anthropic.Anthropic) -> None:
    tool: Any = {"name": "weather", "input_schema": SCHEMA}
    turns: Any = [{"role": "user", "content": BLOCKS}]
    given: Any = {"model": "default", "max_tokens": 60, "tools": [tool]}
    message = claude.messages.create(messages=turns, tool_choice={"type": "any"}, **given)
    [use] = [block for block in message.content if block.type == "tool_use"]
    jsonschema.validate(use.input, SCHEMA)
    result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": "It rains."}
    turns += [{"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    assert claude.messages.create(messages=turns, **given).content


def test_a_document_and_what_is_refused(claude: anthropic.Anthropic) -> None:
    source = {"type": "base64", "media_type": "application/pdf", "data": base64.b64encode(pdf()).decode()}
    document: Any = [{"type": "document", "source": source}, {"type": "text", "text": "How many airplanes are there?"}]
    message = claude.messages.create(
        model="default", max_tokens=20, system="Be brief.", messages=[{"role": "user", "content": document}]
    )
    assert message.content[0].text and message.usage.input_tokens > 200, "two pages"
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        claude.messages.create(model="default", max_tokens=10**6, messages=[{"role": "user", "content": "Hi"}])
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="another", max_tokens=1, messages=[{"role": "user", "content": "Hi"}])
