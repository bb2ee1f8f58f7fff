"""Heads of requests are bounded: what no application ever sees must not be able to hurt the server."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from fakes import FakeModel
from server.bodies import chat
from tests.e2e.server_process import LIMIT_S
from tests.live_server import answering
from vl2.core.config import ServerConfig
from vl2.server import http_protocol
from vl2.server.app import create_app

pytest.importorskip("httptools")


@pytest.fixture()
def address() -> Iterator[str]:
    with answering(create_app(FakeModel(), ServerConfig()), http=http_protocol.http_protocol()) as address:
        yield address


def talk(address: str, *pieces: bytes) -> bytes:
    """Sends them on one connection; all that comes back until the server closes it."""
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except ConnectionError:
            pass  # it closed while we were sending
        received = b""
        try:
            while piece := connection.recv(65536):
                received += piece
        except ConnectionError:
            pass
        return received


def error_of(reply: bytes) -> dict[str, str]:
    return json.loads(reply.partition(b"\r\n\r\n")[2])["error"]


def test_one_endless_header_is_refused_and_others_are_answered(address: str) -> None:
    reply = talk(address, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: ", *[b"a" * 32_768] * 4)
    assert reply.startswith(b"HTTP/1.1 431 ")
    assert "65536 bytes" in error_of(reply)["message"]
    assert httpx.get(f"{address}/health/live").status_code == 200


def test_endless_trickle_of_headers_is_refused(address: str) -> None:
    headers = (b"X-%d: %s\r\n" % (number, b"a" * 1000) for number in range(1000))
    assert talk(address, b"GET / HTTP/1.1\r\n", *headers).startswith(b"HTTP/1.1 431 ")


def test_a_large_body_is_no_head(address: str) -> None:
    body = json.dumps({"model": "m" * 200_000, "messages": []})
    answer = httpx.post(f"{address}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 404)


def test_what_is_no_http_gets_a_clear_400(address: str) -> None:
    reply = talk(address, b"\x16\x03\x01 hello\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert error_of(reply)["type"] == "invalid_request_error"


def test_a_head_that_never_ends_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.05)
    with answering(create_app(FakeModel(), ServerConfig()), http=http_protocol.http_protocol()) as address:
        assert talk(address, b"GET / HTTP/1.1\r\nHost: 127.0") == b""
        assert talk(address) == b""  # nor may a connection stay that says nothing


def test_a_body_that_does_not_go_on_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "BODY_TIMEOUT_S", 0.05)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with answering(create_app(FakeModel(), ServerConfig()), http=http_protocol.http_protocol()) as address:
        assert talk(address, head + b"Content-Length: 1000\r\n\r\n{") == b""
        assert httpx.post(f"{address}/v1/chat/completions", json=chat()).status_code == 200


def test_requests_on_one_connection_each_have_their_time(address: str) -> None:
    with httpx.Client(base_url=address) as client:
        for _ in range(3):
            assert client.get("/health/live").status_code == 200
