"""Requests that a front-end hands on to the hub, as they are: whatever is about files, batches and numbers of all."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import httpx
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from vl2.core.errors import NotReady
from vl2.server.drain import Drain
from vl2.server.errors import error_response

PATHS = re.compile(r"/metrics|/v1/(files|batches)(/.*)?")
PER_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"trailer", b"proxy-authorization"}


class ForwardToHub:
    """Around the whole app: the hub checks keys, counts and logs what is handed on."""

    def __init__(self, app: ASGIApp, socket_path: str, drain: Drain) -> None:
        self.app, self.drain = app, drain
        transport = httpx.AsyncHTTPTransport(uds=socket_path)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://hub", timeout=None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not PATHS.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        with self.drain.running():
            await self._forward(scope, receive, send)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name not in PER_HOP]
        url = httpx.URL("http://hub", raw_path=_raw_path(scope))
        content = _body(receive) if _has_body(Headers(scope=scope)) else None
        request = self._client.build_request(scope["method"], url, headers=headers, content=content)
        try:
            response = await self._client.send(request, stream=True)
        except httpx.TransportError:
            await error_response(NotReady("the server is starting; try again in a moment"))(scope, receive, send)
            return
        try:
            kept = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in PER_HOP]
            await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
            async for chunk in response.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()


def _raw_path(scope: Scope) -> bytes:
    query: bytes = scope["query_string"]
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    return path + b"?" + query if query else path


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise httpx.ReadError("the client left while it sent its request")
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return
