"""Keys, sizes, request ids and log lines: what every request passes, whatever its route."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fakes import FakeModel, answer
from server.bodies import Connect, chat, image_part, text_part
from vl2.core.errors import EngineError

URL = "/v1/chat/completions"


@pytest.mark.parametrize("path", ["/", "/web/app.js", "/health", "/health/live", "/health/ready"])
async def test_the_page_and_the_probes_need_no_key(connect: Connect, path: str) -> None:
    assert (await connect(api_key=("secret",)).get(path)).status_code == 200


@pytest.mark.parametrize("path", [URL, "/v1/models", "/v1/models/fake", "/predict", "/metrics", "/openapi.json", "/x"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_everything_else_does(connect: Connect, method: str, path: str) -> None:
    response = await connect(api_key=("secret",)).request(method, path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer one", 200),
        ("bearer two", 200),
        ("Bearer three", 401),
        ("Bearer ", 401),
        ("Bearer one two", 401),
        ("Basic one", 401),
        ("one", 401),
        ("Bearer schlüssel", 401),
    ],
)
async def test_any_of_the_keys_opens(connect: Connect, header: str, status: int) -> None:
    client = connect(api_key=("one", "two"))
    response = await client.get("/v1/models", headers={"Authorization": header.encode()})
    assert response.status_code == status


async def test_a_body_over_the_limit_is_413_by_its_length(connect: Connect) -> None:
    client = connect(max_body_bytes=200)
    response = await client.post(URL, json=chat("x" * 200))
    assert response.status_code == 413
    assert "200 bytes" in response.json()["error"]["message"]
    assert (await client.post(URL, json=chat())).status_code == 200


async def test_and_without_a_length_as_soon_as_it_is_too_long(connect: Connect) -> None:
    num_sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal num_sent
        for num_sent in range(1000):  # noqa: B007
            yield b"x" * 100

    headers = {"Content-Type": "application/json"}
    response = await connect(max_body_bytes=200).post(URL, content=body(), headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")
    assert num_sent < 5


@pytest.mark.parametrize(
    ("sent", "is_kept"), [("order-7:a.b_c", True), ("a b", False), ("x" * 129, False), ("é", False)]
)
async def test_a_plain_request_id_is_kept_and_any_other_replaced(connect: Connect, sent: str, is_kept: bool) -> None:
    response = await connect().get("/health/live", headers={"X-Request-Id": sent.encode()})
    assert (response.headers["x-request-id"] == sent) is is_kept


async def test_every_answer_has_a_request_id(connect: Connect) -> None:
    client = connect(api_key=("k",), max_body_bytes=10)
    for path in ("/", "/v1/models", "/nothing"):
        assert len((await client.get(path)).headers["x-request-id"]) == 32
    assert (await client.post("/predict", content=b"x" * 11)).headers["x-request-id"]


async def test_a_request_is_one_log_line_without_what_was_said(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vl2")
    client = connect(api_key=("the-key",))
    headers = {"Authorization": "Bearer the-key", "X-Request-Id": "r-1"}
    await client.post(URL, json=chat([image_part(), text_part("my secret")]), headers=headers)
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("vl2")]
    assert line.startswith(f"request_id=r-1 POST {URL} 200 ")
    assert "prompt=10 image=4 cached=2 answer=4 tokens" in line
    assert not any(word in line for word in ("secret", "the-key", "base64", "square"))


async def test_a_broken_stream_is_logged_as_an_error(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vl2")
    await connect(FakeModel([*answer("A red")[:1], EngineError("x")])).post(URL, json=chat(stream=True))
    assert " 500 " in caplog.text
    assert "error=engine_error" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "fields", "words"),
    [
        ("POST", URL, {"json": chat(n=0)}, f"POST {URL} 400 error=invalid_request param=n"),
        ("POST", URL, {"json": {"messages": [{}]}}, f"POST {URL} 400 error=invalid_request param=messages[0].role"),
        ("POST", URL, {"json": chat(**{"a b\n": 1})}, f"POST {URL} 400 error=invalid_request"),
        ("POST", URL, {"content": b"{"}, f"POST {URL} 400 error=invalid_request"),
        ("POST", URL, {"json": chat(model="x")}, f"POST {URL} 404 error=model_not_found param=model"),
        ("POST", "/predict", {"content": b"x" * 300}, "POST /predict 413 error=too_large"),
        ("GET", "/predict", {}, "GET /predict 405 error=method_not_allowed"),
        ("GET", "/nothing", {}, "GET other 404 error=not_found"),
        ("GET", "/v1/models/a/b", {"headers": {}}, "GET /v1/models/{model_id:path} 401 error=invalid_api_key"),
        ("GET", "/nothing", {"headers": {}}, "GET other 401 error=invalid_api_key"),
    ],
)
async def test_a_refused_request_s_line_tells_why_by_code_and_field(
    connect: Connect, caplog: pytest.LogCaptureFixture, method: str, path: str, fields: dict[str, Any], words: str
) -> None:
    caplog.set_level(logging.INFO, "vl2")
    client = connect(api_key=("k",), max_body_bytes=200)
    headers = {"Authorization": "Bearer k", "Content-Type": "application/json"}
    await client.request(method, path, **{"headers": headers} | fields)
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("vl2")]
    assert re.sub(r" [0-9.]+ s\b", "", line.partition(" ")[2]) == words


async def test_a_request_without_a_key_is_counted_on_its_route(connect: Connect) -> None:
    client = connect(api_key=("k",))
    await client.get("/v1/models")
    metrics = await client.get("/metrics", headers={"Authorization": "Bearer k"})
    assert 'route="/v1/models",status="401"} 1.0' in metrics.text


async def test_probes_are_quiet_even_when_they_fail(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "vl2")
    await connect(FakeModel(is_ready=False)).get("/health")
    (record,) = [record for record in caplog.records if record.name.startswith("vl2")]
    assert record.levelno == logging.DEBUG
    assert "GET /health 503" in record.getMessage() and "error=engine_not_ready" in record.getMessage()


async def test_a_bug_is_a_500_without_a_traceback_and_a_log_entry_with_one(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(FakeModel([ZeroDivisionError("secret")]))
    response = await client.post(URL, json=chat(), headers={"X-Request-Id": "r-9"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "r-9"
    assert "r-9" in response.json()["error"]["message"]
    assert "secret" not in response.text
    assert "ZeroDivisionError: secret" in caplog.text
