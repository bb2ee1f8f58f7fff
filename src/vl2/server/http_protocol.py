"""uvicorn's faster HTTP parser, with bounds that it lacks: a head may neither fill the memory nor take forever, and a
body that has begun must go on.
"""

from __future__ import annotations

import asyncio
import json

from vl2.core.errors import InvalidRequest, RequestError
from vl2.server.errors import error_body

MAX_HEAD_BYTES = 64 * 1024
"""uvicorn's slower parser (h11) has this bound of its own. Pieces of a connection are counted as they come."""
HEAD_TIMEOUT_S = 30.0
"""From the first byte of a request, or from a connection's begin, until its head is complete."""
BODY_TIMEOUT_S = 60.0
"""For the next piece of a body, if it was not we who did not read on."""


def http_protocol() -> type[asyncio.Protocol] | str:
    """What `uvicorn.Config` takes as `http`."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "h11"

    class BoundedHttp(HttpToolsProtocol):
        _head_bytes: int | None = None  # None: no head is being read
        _head_timer: asyncio.TimerHandle | None = None
        _body_timer: asyncio.TimerHandle | None = None

        # asyncio promises a BaseTransport; uvicorn, as we, is only ever given what can be written to.
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
            super().connection_made(transport)
            self._begin_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end_head()
            self._end_body()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            self._begin_head()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._end_head()
            self._await_body()
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._await_body()
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._end_body()
            super().on_message_complete()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._head_bytes is not None and not self.transport.is_closing():
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    line = "431 Request Header Fields Too Large"
                    self._refuse(line, RequestError(f"the request's head has more than {MAX_HEAD_BYTES} bytes"))

        def send_400_response(self, msg: str) -> None:
            self._refuse("400 Bad Request", InvalidRequest("this is not an HTTP request that can be read"))

        def _begin_head(self) -> None:
            self._end_head()
            self._head_bytes = 0
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

        def _end_head(self) -> None:
            self._head_bytes = None
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _await_body(self) -> None:
            self._end_body()
            self._body_timer = self.loop.call_later(BODY_TIMEOUT_S, self._give_up_body)

        def _end_body(self) -> None:
            if self._body_timer is not None:
                self._body_timer.cancel()
                self._body_timer = None

        def _give_up_body(self) -> None:
            if self.flow.read_paused:
                self._await_body()
            else:
                self.transport.close()

        def _refuse(self, status_line: str, error: RequestError) -> None:
            body = json.dumps(error_body(error)).encode()
            headers = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            self.transport.write(f"HTTP/1.1 {status_line}\r\n{headers}".encode() + body)
            self.transport.close()

    return BoundedHttp
