"""Answering for as long as someone listens: a client that hangs up ends its own work, at once, and no one else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

WRITE = "vl2.write"
"""Of the scope: the server's own `send`, past all layers. They look at heads and at ends, and each would take its time
of every token.
"""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client hangs up. Raises: ClientDisconnect, or as `work`.

    The request's body must have been read before.
    """
    worker, listener = asyncio.ensure_future(work), asyncio.ensure_future(_hang_up(receive))
    try:
        await asyncio.wait((worker, listener), return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return worker.result()
        raise ClientDisconnect
    finally:
        worker.cancel()
        listener.cancel()
        await asyncio.gather(worker, listener, return_exceptions=True)


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events as they come, then what `end` returns: the response is over for whoever has read that.
    Calls `close` once, however the response ends.

    When the server stops and cuts an open stream, the client still gets what `last_words` returns.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        end: Callable[[], bytes],
        close: Callable[[], Awaitable[None]],
        last_words: Callable[[], bytes],
    ) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},  # proxies must not hold events back
        )
        del self.headers["content-length"]
        self._events, self._end = events, end
        self._close, self._last_words = close, last_words
        self._is_open = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._write(send, scope.get(WRITE, send)))
        except (ClientDisconnect, OSError):  # OSError: how ASGI 2.4 tells the same while sending
            pass
        except asyncio.CancelledError:
            if self._is_open:
                await send({"type": "http.response.body", "body": self._last_words()})
            raise
        finally:
            await self._close()

    async def _write(self, send: Send, write: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._is_open = True
        async for event in self._events:
            await write({"type": "http.response.body", "body": event, "more_body": True})
        self._is_open = False
        await send({"type": "http.response.body", "body": self._end()})
