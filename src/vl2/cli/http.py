"""uvicorn as `vl2 serve` runs it: a signal drains, a second one cuts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Generator
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from vl2.core.config import ServerConfig
from vl2.server.admin import create_admin_app
from vl2.server.drain import Drain
from vl2.server.http_protocol import http_protocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from vl2.cli.frontends import Frontends
    from vl2.llm import LLM

logger = logging.getLogger("vl2.serve")
KEEP_ALIVE_S = 75
"""Longer than clients and proxies keep an idle connection: who closes it first may cut a request that is on its way."""
BACKLOG = 2048
CUT_AFTER_S = 1  # what a stream that is cut may take for its last words


class DrainingServer(uvicorn.Server):
    """On the first signal the listener stays open and refuses politely, until what runs has ended or its time is over.

    Streams that are cut get their last words from `streaming.EventStream`.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: ServerConfig,
        drain: Drain,
        *,
        frontends: Frontends | None = None,
    ) -> None:
        """`frontends`: this is their hub, which listens on a private socket and ends after them."""
        uds = None if frontends is None else frontends.http_socket
        super().__init__(
            uvicorn.Config(
                app,
                http=http_protocol(),
                uds=uds,
                backlog=BACKLOG,
                log_config=None,
                access_log=False,  # the app logs one line per finished request
                server_header=False,
                ssl_certfile=config.tls_cert if uds is None else None,
                ssl_keyfile=config.tls_key if uds is None else None,
                timeout_graceful_shutdown=CUT_AFTER_S,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )
        self.is_aborted = False
        self._drain, self._frontends = drain, frontends
        self._drain_timeout_s = config.drain_timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._on_signal)

    def _on_signal(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain_then_exit())
            return
        logger.warning("told again to stop; %d requests are cut", self._drain.num_running)
        self.is_aborted = True
        if self._frontends is not None:
            self._frontends.terminate()
        self._cut()

    async def _drain_then_exit(self) -> None:
        self._drain.begin()
        running = self._drain.num_running
        logger.info("stopping; %d requests are given %g s", running, self._drain_timeout_s)
        if self._frontends is not None:
            await self._frontends.end(self._drain_timeout_s)
        if not await self._drain.wait_idle(self._drain_timeout_s):
            self._cut()
        self.should_exit = True

    def _cut(self) -> None:
        self.should_exit = True
        for task in self.server_state.tasks:
            task.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        logger.info("stopped")


class _AdminServer(uvicorn.Server):
    """Has no signals of its own; it ends by being cancelled."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        raise AssertionError("the main server handles signals")

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def admin_server(llm: LLM, app: FastAPI) -> uvicorn.Server:
    state = app.state
    admin = create_admin_app(llm, state.metrics, state.drain, state.status, state.config)
    return _AdminServer(
        uvicorn.Config(
            admin, http=http_protocol(), log_config=None, access_log=False, server_header=False, lifespan="off"
        )
    )
