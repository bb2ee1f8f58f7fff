"""A request from inside the server: the same app, without a socket."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp

from vl2.server.auth import INSIDE
from vl2.server.tenants import Key


async def post(app: ASGIApp, path: str, body: bytes, key: Key) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of the answer to `key`'s request. Cancelling it is hanging up."""
    sent: list[bytes] = []
    head: dict[str, Any] = {"status": 500, "headers": []}
    requests = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if requests:
            return requests.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            head.update(message)
        else:
            sent.append(message.get("body", b""))

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        INSIDE: key,
    }
    await app(scope, receive, send)
    return head["status"], b"".join(sent), {name.decode(): value.decode() for name, value in head["headers"]}
