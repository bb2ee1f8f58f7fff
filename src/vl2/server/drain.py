"""The end of a server: new work is refused politely, running work ends first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vl2.server.auth import INSIDE, is_public
from vl2.server.errors import ServerStopping, error_response


class Drain:
    """Counts what runs; `begin` is the point from which nothing new is taken."""

    def __init__(self) -> None:
        self.is_draining = False
        self.num_running = 0
        self._idle = asyncio.Event()

    def begin(self) -> None:
        self.is_draining = True
        if not self.num_running:
            self._idle.set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """For as long as a request is under way."""
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1
            if self.is_draining and not self.num_running:
                self._idle.set()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Whether all that ran has ended in time."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True


class DrainRequests:
    """Probes and the page are answered to the end; all else is 503 with `Connection: close` once draining began."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_public(scope):
            await self.app(scope, receive, send)
            return
        if self.drain.is_draining:
            await error_response(ServerStopping(was_running=False))(scope, receive, _closing(send))
            return
        if INSIDE in scope:  # a batch's line: asked again after the next start
            await self.app(scope, receive, send)
            return
        with self.drain.running():
            await self.app(scope, receive, send)


def _closing(send: Send) -> Send:
    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["Connection"] = "close"
        await send(message)

    return send_and_close
