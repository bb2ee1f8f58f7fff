"""How large and how deep a request's body may be, and what type it must have."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import numpy as np
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vl2.core.config import ServerConfig
from vl2.core.errors import InvalidRequest, TooLarge, WrongMediaType
from vl2.server.access import record_of
from vl2.server.errors import error_response
from vl2.server.fields import note_ignored
from vl2.server.query import check_query, declared_by


class LimitBody:
    """Refuses bodies over `max_bytes`: by their Content-Length at once, without one as soon as they grow too long."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > self.max_bytes:
            await error_response(self._error())(scope, receive, send)
            return
        num_bytes = 0

        async def count() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_bytes:
                raise self._error()
            return message

        await self.app(scope, count, send)

    def _error(self) -> TooLarge:
        return TooLarge(f"the request body is larger than {self.max_bytes} bytes (--max-body-bytes)")


class JSONRequest(Request):
    """A request whose body is parsed within the limits of the configuration, which lies in the app's state."""

    async def json(self) -> Any:
        if not hasattr(self, "_checked"):
            config: ServerConfig = self.app.state.config
            check_count(await self.body(), config.max_json_values)
            value = await super().json()
            check_shape(value, config.max_json_depth, config.max_json_values)
            self._checked = value
        return self._checked


class JSONRoute(APIRoute):
    """A route that takes JSON and says so: a web form could be sent by any page, without asking the browser.

    Its query may hold what it declares.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, declared = super().get_route_handler(), declared_by(self)

        async def checked(request: Request) -> Response:
            if request.url.query:
                hints = check_query(request.query_params.multi_items(), declared)
                note_ignored(record_of(request).headers, hints)
            if self.body_field is not None:
                check_json_type(request.headers)
            return await handle(JSONRequest(request.scope, request.receive))

        return checked


def check_json_type(headers: Headers) -> None:
    """Raises: WrongMediaType."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        sent = f"is {kind[:60]!r}" if kind else "is missing"
        raise WrongMediaType(
            f"the content type {sent}, but the body must be a JSON object, sent with Content-Type: application/json"
        )


PLACES = (b",", b"[", b"{")
LARGE_BYTES = 1 << 17

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def check_count(data: bytes, max_values: int) -> None:
    """Before anything is built: a hundred megabytes of `[{},{},…]` would become gigabytes, and keep all others waiting.

    Texts are taken out only where there are many commas or brackets, and not where there are too many texts already:
    each is a value or the name of one. Raises: InvalidRequest.
    """
    if _num_places(data) < max_values:
        return
    if data.count(b'"') - data.count(b'\\"') > 4 * max_values:
        raise _too_many(max_values)
    bare = _STRING.sub(b"0", data + b'""').translate(None, b" \t\r\n")  # a text without end ends there
    if 1 + _num_places(bare) - bare.count(b"[]") - bare.count(b"{}") > max_values:
        raise _too_many(max_values)


def _num_places(data: bytes) -> int:
    """A value beside the first follows a comma, or is the first of a list or an object."""
    return sum(map(data.count, PLACES)) if len(data) < LARGE_BYTES else sum(_counts(data))


def _counts(data: bytes) -> Iterator[int]:
    """As `bytes.count`, which looks at one byte at a time. By pieces that stay in the cache."""
    for start in range(0, len(data), LARGE_BYTES):
        piece = np.frombuffer(data, np.uint8)[start : start + LARGE_BYTES]
        yield from (int(np.count_nonzero(piece == place[0])) for place in PLACES)


def _too_many(max_values: int) -> InvalidRequest:
    return InvalidRequest(f"the body has more than {max_values} values (--max-json-values)")


def check_shape(value: Any, max_depth: int, max_values: int) -> None:
    """Walks a parsed body without recursion. Raises: InvalidRequest."""
    level, depth, num_values = [value], 0, 0
    while level:
        num_values += len(level)
        if num_values > max_values:
            raise _too_many(max_values)
        containers = [item for item in level if isinstance(item, (dict, list))]
        depth += bool(containers)
        if depth > max_depth:
            raise InvalidRequest(f"the body is nested too deeply; the limit is {max_depth} levels (--max-json-depth)")
        level = [inner for item in containers for inner in (item.values() if isinstance(item, dict) else item)]


def parse_json(data: bytes, max_depth: int, max_values: int) -> Any:
    """The same for a body that did not come by HTTP. Raises: InvalidRequest."""
    check_count(data, max_values)
    try:
        value = json.loads(data)
    except RecursionError:
        raise InvalidRequest("it is nested too deeply") from None
    except ValueError as error:
        raise InvalidRequest(f"it is not valid JSON: {error}") from None
    check_shape(value, max_depth, max_values)
    return value
