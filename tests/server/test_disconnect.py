"""A client that hangs up sets its answer's work free at once, even while the model is silent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from fakes import FakeModel, answer
from server.bodies import chat
from tests.e2e.server_process import LIMIT_S
from vl2.core.config import ServerConfig
from vl2.server.app import create_app


class RawClient:
    """One POST to the app, by hand, so that the test decides when the client hangs up."""

    def __init__(self, model: FakeModel, path: str, body: dict[str, Any]) -> None:
        self.hang_up = asyncio.Event()
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        self._messages = [{"type": "http.request", "body": json.dumps(body).encode()}]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "asgi": {"version": "3.0"}}
        scope |= {
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "http_version": "1.1",
            "root_path": "",
        }
        app = create_app(model, ServerConfig())
        self.request = asyncio.ensure_future(app(scope, self._receive, self.sent.put))

    async def read_until(self, text: bytes) -> None:
        """How many writes it takes is the server's affair."""
        while text not in (await self.sent.get()).get("body", b""):
            pass

    async def _receive(self) -> Any:
        if self._messages:
            return self._messages.pop()
        await self.hang_up.wait()
        return {"type": "http.disconnect"}


async def until(condition: Callable[[], object]) -> None:
    """Let others run until it holds. Raises: TimeoutError."""

    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0)

    await asyncio.wait_for(wait(), LIMIT_S)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_silent_model_is_let_go_before_its_first_token(stream: bool) -> None:
    model = FakeModel([asyncio.Event()])
    client = RawClient(model, "/v1/chat/completions", chat(stream=stream))
    await until(lambda: model.asked)
    client.hang_up.set()
    await client.request
    assert model.num_cancelled == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_and_in_the_middle_of_its_answer(stream: bool) -> None:
    model = FakeModel([*answer("A red square.")[:2], asyncio.Event()])
    client = RawClient(model, "/v1/chat/completions", chat(stream=stream))
    if stream:
        await client.read_until(b"red")
    await until(lambda: model.asked)
    client.hang_up.set()
    await client.request
    assert model.num_cancelled == 1


async def test_predict_lets_go_too() -> None:
    model = FakeModel([asyncio.Event()])
    client = RawClient(model, "/predict", {"prompt": "What?", "image": "AAAA"})
    await until(lambda: model.asked)
    client.hang_up.set()
    await client.request
    assert model.num_cancelled == 1


async def test_a_client_that_hangs_up_is_logged_as_gone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "vl2")
    model = FakeModel([*answer("A red square.")[:2], asyncio.Event()])
    client = RawClient(model, "/v1/chat/completions", chat(stream=True))
    await client.read_until(b"red")
    client.hang_up.set()
    await client.request
    assert " 499 " in caplog.text
    assert "error=client_gone" in caplog.text and "answer=2 tokens" in caplog.text
    assert "internal error" not in caplog.text


async def test_a_finished_answer_cancels_nothing() -> None:
    model = FakeModel()
    client = RawClient(model, "/v1/chat/completions", chat(stream=True))
    await client.request
    assert model.num_cancelled == 0


async def stop_server(client: RawClient) -> list[Any]:
    """As uvicorn does when its time to finish running requests is over; what the client gets after that."""
    while not client.sent.empty():
        client.sent.get_nowait()
    client.request.cancel()
    await client.request  # ends well: uvicorn would log a traceback of whatever comes out of here
    return [client.sent.get_nowait() for _ in range(client.sent.qsize())]


async def test_a_stream_that_the_stopping_server_cuts_ends_with_an_error_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "vl2")
    model = FakeModel([*answer("A red square.")[:2], asyncio.Event()])
    client = RawClient(model, "/v1/chat/completions", chat(stream=True))
    await client.read_until(b"red")
    (last,) = await stop_server(client)
    error, done, end = last["body"].decode().split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "server_stopping"
    assert (done, end, last.get("more_body", False)) == ("data: [DONE]", "", False)
    assert model.num_cancelled == 1
    assert " 503 " in caplog.text and "error=server_stopping" in caplog.text and "answer=2 tokens" in caplog.text
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_it_cuts_before_the_answer_is_503(caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    caplog.set_level("INFO", "vl2")
    model = FakeModel([asyncio.Event()])
    client = RawClient(model, "/v1/chat/completions", chat(stream=stream))
    await until(lambda: model.asked)
    start, body = await stop_server(client)
    assert start["status"] == 503 and (b"retry-after", b"1") in start["headers"]
    assert json.loads(body["body"])["error"]["code"] == "server_stopping"
    assert model.num_cancelled == 1
    assert " 503 " in caplog.text and "error=server_stopping" in caplog.text
