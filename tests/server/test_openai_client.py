"""The real `openai` client against a real server on a loopback port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import openai
import pytest

from fakes import FakeModel, answer
from server.bodies import image_part, text_part
from tests.e2e.server_process import LIMIT_S
from tests.live_server import answering
from vl2.core.config import ServerConfig
from vl2.core.errors import CapacityError, EngineError
from vl2.core.secret import Secret
from vl2.server.app import create_app

ASK: list[Any] = [{"role": "user", "content": [image_part(), text_part("What is it?")]}]
Serve = Callable[..., str]


@contextmanager
def running(model: FakeModel, **config: Any) -> Iterator[str]:
    """The app on loopback → its base URL."""
    with answering(create_app(model, ServerConfig(**config))) as url:
        yield url + "/v1"


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:
        yield lambda model=None, **config: stack.enter_context(running(model or FakeModel(), **config))


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=LIMIT_S)


def test_a_question_about_a_picture(serve: Serve) -> None:
    completion = client(serve()).chat.completions.create(
        model="default", messages=ASK, logprobs=True, top_logprobs=1, extra_body={"top_k": 5, "return_token_ids": True}
    )
    choice = completion.choices[0]
    assert choice.message.content == "A red square."
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert "".join(entry.token for entry in choice.logprobs.content) == "A red square."
    assert choice.token_ids == [100, 101, 102, 1]  # type: ignore[attr-defined]
    assert completion.prompt_token_ids == [0, 7, 8]  # type: ignore[attr-defined]
    assert completion.usage is not None and completion.usage.prompt_tokens_details is not None
    assert completion.usage.prompt_tokens_details.cached_tokens == 2
    assert completion.usage.prompt_tokens_details.image_tokens == 4  # type: ignore[attr-defined]


def test_two_streamed_answers_and_their_usage(serve: Serve) -> None:
    texts, usage = {0: "", 1: ""}, None
    for chunk in client(serve()).chat.completions.create(
        model="fake", messages=ASK, n=2, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {0: "A red square.", 1: "A red square."}
    assert usage is not None and usage.completion_tokens == 8


def test_the_client_s_own_accumulator_understands_the_stream(serve: Serve) -> None:
    with client(serve()).chat.completions.stream(model="fake", messages=ASK) as stream:
        completion = stream.get_final_completion()
    assert completion.choices[0].message.content == "A red square."


async def test_many_answers_at_once_with_the_async_client(serve: Serve) -> None:
    async with openai.AsyncOpenAI(base_url=serve(), api_key="none") as api:

        async def ask() -> str:
            stream = await api.chat.completions.create(model="fake", messages=ASK, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        assert await asyncio.gather(*(ask() for _ in range(16))) == ["A red square."] * 16


def test_models(serve: Serve) -> None:
    api = client(serve())
    assert [model.id for model in api.models.list()] == ["fake"]
    assert api.models.retrieve("fake").owned_by == "vl2"


def test_the_client_raises_its_own_errors(serve: Serve) -> None:
    api = client(serve(api_key=(Secret("k"),), max_body_bytes=2_000_000), "k")
    create = api.chat.completions.create
    with pytest.raises(openai.BadRequestError) as bad:
        create(model="fake", messages=ASK, max_tokens=0)
    assert bad.value.param == "max_tokens"
    with pytest.raises(openai.NotFoundError) as missing:
        create(model="gpt-4o", messages=ASK)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client(str(api.base_url), "wrong").models.list()
    with pytest.raises(openai.APIStatusError) as large:
        create(model="fake", messages=[{"role": "user", "content": "x" * 8_000_000}])
    assert large.value.status_code == 413
    assert create(model="fake", messages=ASK).choices[0].message.content == "A red square."


def test_a_full_queue_is_a_rate_limit(serve: Serve) -> None:
    with pytest.raises(openai.RateLimitError) as full:
        client(serve(FakeModel([CapacityError("512 requests wait")]))).chat.completions.create(
            model="fake", messages=ASK
        )
    assert full.value.response.headers["retry-after"] == "1"


def test_an_error_in_mid_stream_is_raised_and_not_waited_for(serve: Serve) -> None:
    url = serve(FakeModel([*answer("A red square.")[:2], EngineError("the engine died")]))
    with pytest.raises(openai.APIError, match="the engine died"):
        for _ in client(url).chat.completions.create(model="fake", messages=ASK, stream=True):
            pass


def test_closing_a_stream_frees_its_work_at_once(serve: Serve) -> None:
    model = FakeModel([*answer("A red square.")[:2], asyncio.Event()])
    stream = client(serve(model)).chat.completions.create(model="fake", messages=ASK, stream=True)
    next(iter(stream))
    stream.close()
    assert model.closed.wait(LIMIT_S), "the model says nothing more that could end it"
    assert model.num_cancelled == 1
