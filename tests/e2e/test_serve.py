"""The whole of vl2 as its users meet it: a server process, its engine process, the real openai client, and curl."""

import base64
import concurrent.futures
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import jsonschema
import openai
import pytest
from PIL import Image

from golden_cases import GOLDEN_ROOT, GoldenCase, load_variant
from tests.e2e.server_process import LIMIT_S, Server, serving, standing_still, wait_until

VARIANT = load_variant("mla-greedy")
LONG_ANSWER = {"max_tokens": 4000, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(VARIANT.folder, "--device", "cpu", "--dtype", "float32", "--max-queue", "8") as server:
        yield server


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def data_url(path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def as_openai(case: GoldenCase) -> list[dict]:
    """A golden conversation as an application would send it: pictures as data URLs, tags in the text."""
    messages = []
    for message in case.messages[:-1]:
        pictures = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in message.images]
        messages.append({"role": message.role, "content": [{"type": "text", "text": message.content}, *pictures]})
    return messages


def ask(client: openai.OpenAI, messages: list[dict], **params):
    return client.chat.completions.create(model="default", messages=messages, **params)


@pytest.mark.parametrize("case", VARIANT.cases, ids=str)
def test_the_openai_client_gets_the_official_tokens(client: openai.OpenAI, case: GoldenCase):
    extra = {"return_token_ids": True, "ignore_eos": True}
    answer = ask(client, as_openai(case), max_tokens=16, temperature=0, extra_body=extra)
    assert answer.prompt_token_ids == case.input_ids
    assert answer.choices[0].token_ids == case.greedy_tokens
    assert answer.usage.prompt_tokens == len(case.input_ids)
    assert answer.usage.prompt_tokens_details.image_tokens == case.meta["image_tokens"]
    stream = ask(
        client, as_openai(case), max_tokens=16, stream=True, stream_options={"include_usage": True}, extra_body=extra
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content
    again = chunks[-1].usage
    assert (again.prompt_tokens, again.completion_tokens) == (len(case.input_ids), 16)
    assert again.prompt_tokens_details.cached_tokens > 0 or len(case.input_ids) <= 16, "asked a second time"


def test_logprob_bytes_concatenate_to_the_answer(client: openai.OpenAI):
    answer = ask(client, as_openai(VARIANT.case("square")), max_tokens=16, logprobs=True, top_logprobs=2)
    [choice] = answer.choices
    joined = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content)
    assert joined.decode(errors="replace") == choice.message.content
    assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)


def test_choices_differ_and_a_seed_repeats_them(client: openai.OpenAI):
    settings = {"n": 3, "temperature": 1.0, "seed": 7, "max_tokens": 8}
    first, again = (
        [choice.message.content for choice in ask(client, as_openai(VARIANT.case("text")), **settings).choices]
        for _ in range(2)
    )
    assert first == again and len(set(first)) == 3


def test_an_answer_under_a_schema_is_valid_json_at_any_temperature(client: openai.OpenAI):
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["cat", "dog"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["kind", "count"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "pets", "schema": schema, "strict": True}}
    settings = {"response_format": form, "temperature": 1.5, "n": 3, "seed": 1, "max_tokens": 300}
    messages = as_openai(VARIANT.case("square"))
    for choice in ask(client, messages, **settings).choices:
        jsonschema.validate(json.loads(choice.message.content), schema)
        assert choice.finish_reason == "stop"
    chosen = ask(client, messages, temperature=1.5, extra_body={"guided_choice": ["a cat", "no cat"]})
    assert chosen.choices[0].message.content in ("a cat", "no cat")


def test_boxes_are_well_formed_with_grounding_and_text_without(client: openai.OpenAI):
    begun = {"role": "assistant", "content": "<|ref|>the cat<|/ref|><|det|>"}
    settings = {"temperature": 1.5, "seed": 1, "max_tokens": 40, "n": 4}
    messages = [*as_openai(VARIANT.case("square")), begun]
    for choice in ask(client, messages, extra_body={"grounding": True}, **settings).choices:
        assert choice.message.grounding[0]["label"] == "the cat"
        for found in choice.message.grounding:
            assert all(0 <= x1 < x2 <= 999 and 0 <= y1 < y2 <= 999 for x1, y1, x2, y2 in found["boxes_norm"])
    assert all(choice.message.grounding is None for choice in ask(client, messages, **settings).choices)


def test_a_schema_that_cannot_be_used_is_refused_by_its_field(client: openai.OpenAI):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {"type": "string"}}}}
    with pytest.raises(openai.BadRequestError, match="Unimplemented keys") as caught:
        ask(client, as_openai(VARIANT.case("text")), response_format=form)
    assert caught.value.param == "response_format.json_schema.schema"
    with pytest.raises(openai.BadRequestError, match="none was sent") as caught:
        ask(client, as_openai(VARIANT.case("text")), extra_body={"grounding": True})
    assert caught.value.param == "grounding"


def test_curl_as_the_readme_shows_it(server: Server):
    body = {"model": "default", "max_tokens": 4, "messages": as_openai(VARIANT.case("square"))}
    command = [
        "curl",
        "-s",
        server.url + "/v1/chat/completions",
        "-H",
        "Content-Type: application/json",
        "-d",
        json.dumps(body),
    ]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert answer["usage"]["completion_tokens"] == 4


def test_predict_answers_as_the_guide_has_it(server: Server):
    picture = data_url(VARIANT.case("square").image_paths[0])
    answer = httpx.post(
        server.url + "/predict", json={"image": picture, "prompt": "Describe.", "max_tokens": 4}, timeout=LIMIT_S
    )
    assert answer.status_code == 200 and list(answer.json()) == ["response"]


def test_a_prompt_that_does_not_fit_is_told_the_numbers_and_others_are_answered(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="context") as caught:
        ask(client, [{"role": "user", "content": "word " * 5000}])
    assert caught.value.code == "context_length_exceeded"
    picture = {"type": "image_url", "image_url": {"url": data_url(GOLDEN_ROOT / "images/extra/full3x3.png")}}
    with pytest.raises(openai.BadRequestError, match="pictures"):
        ask(client, [{"role": "user", "content": [*[picture] * 200, {"type": "text", "text": "Compare."}]}])
    assert ask(client, as_openai(VARIANT.case("text")), max_tokens=2).choices


def bomb() -> bytes:
    """A PNG of 100 megapixels in 12 kB."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


SQUARE = VARIANT.case("square").image_paths[0].read_bytes()


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (b"no picture at all", "PNG|picture"),
        (SQUARE[: len(SQUARE) // 2], "truncated|broken|cannot be decoded"),
        (b"", "empty|0 bytes"),
        (bomb(), "10000"),
    ],
    ids=["not a picture", "truncated", "empty", "bomb"],
)
def test_a_bad_picture_is_refused_and_others_are_answered(client: openai.OpenAI, picture: bytes, reason: str):
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, [{"role": "user", "content": content}])
    assert re.search(reason, caught.value.message) and "\n" not in caught.value.message
    assert caught.value.type == "invalid_request_error" and caught.value.param is not None
    assert ask(client, as_openai(VARIANT.case("text")), max_tokens=2).choices


def test_metrics_count_tokens_and_pictures(server: Server, client: openai.OpenAI):
    ask(client, as_openai(VARIANT.case("square")), max_tokens=2)
    lines = httpx.get(server.url + "/metrics", timeout=LIMIT_S).text.splitlines()
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}
    engine = {name.split("{")[0]: value for name, value in values.items() if 'replica="0"' in name and " " not in name}
    assert engine["vl2_engine_ready"] == 1 and engine["vl2_engine_kv_pages"] > 0
    assert engine["vl2_engine_generated_tokens_total"] >= 2 and engine["vl2_engine_tiles_encoded_total"] >= 1


def test_when_the_engine_is_killed_every_open_request_ends_and_a_new_engine_answers(
    server: Server, client: openai.OpenAI
):
    """kill -9 under load: every answer ends with an error, the server is not ready meanwhile, and answers again."""
    messages = as_openai(VARIANT.case("text"))
    streams = [ask(client, messages, stream=True, **LONG_ANSWER) for _ in range(4)]
    for stream in streams:
        next(iter(stream))  # all are under way

    def end(stream) -> str:
        try:
            for _ in stream:
                pass
        except openai.APIError as error:
            return error.message
        return "finished"

    with concurrent.futures.ThreadPoolExecutor(5) as pool, standing_still(server.engine_pid):
        endings = [pool.submit(end, stream) for stream in streams]
        is_down = pool.submit(wait_until, lambda: server.status("/health/ready") == 503)
        os.kill(server.engine_pid, signal.SIGKILL)
        done, _ = concurrent.futures.wait(endings, timeout=LIMIT_S)
        assert len(done) == 4 and all("engine died" in ending.result() for ending in endings)
        is_down.result()
    assert server.status("/health/live") == 200
    wait_until(lambda: server.status("/health/ready") == 200)
    assert ask(client, messages, max_tokens=2).choices


def test_a_bad_checkpoint_is_one_line_and_exit_code_2(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "vl2", "serve", str(tmp_path), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert result.returncode == 2
    [line] = result.stderr.strip().splitlines()
    assert "config.json is missing" in line
