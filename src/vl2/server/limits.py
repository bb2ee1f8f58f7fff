"""How large a request may be."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vl2.core.errors import TooLarge
from vl2.server.errors import error_response


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
