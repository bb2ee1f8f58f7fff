"""Several front-end processes and their hub: `vl2 serve --frontends N`.

The main process keeps the engines and everything that must be one: queue, quotas, kept responses, files and batches. It
listens on a private socket only; the front-ends take what comes to the public one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vl2.core.config import EngineConfig, ProcessorConfig, ServerConfig
from vl2.core.errors import EngineError, VL2Error
from vl2.core.secret import Secret
from vl2.server.processes import SHARED_FOLDER

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vl2.engine.hub import Hub
    from vl2.llm import LLM
    from vl2.server.shared import HubState

logger = logging.getLogger("vl2.serve")

MAX_FAILED_STARTS = 3
START_S = 10.0  # one that lives shorter has failed to start
KILL_AFTER_S = 5.0  # beyond its time to drain


class FrontendSetup(msgspec.Struct, frozen=True):
    """What a front-end is told by its standard input, which stays open for as long as the hub lives."""

    model_folder: str
    hub_folder: str
    server: ServerConfig
    engine: EngineConfig
    processor: ProcessorConfig

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self, enc_hook=Secret.reveal)

    @classmethod
    def decode(cls, data: bytes) -> FrontendSetup:
        return msgspec.msgpack.decode(data, type=cls, dec_hook=lambda _, text: Secret(text))


@contextlib.asynccontextmanager
async def sharing(
    llm: LLM,
    app: FastAPI,
    listener: socket.socket,
    config: ServerConfig,
    engine: EngineConfig,
    processor: ProcessorConfig,
    fail: Callable[[VL2Error], None],
) -> AsyncIterator[Frontends]:
    """The hub and its front-ends, until the block ends."""
    from vl2.engine.group import EngineGroup
    from vl2.engine.hub import Hub

    assert isinstance(llm.client, EngineGroup)
    state: HubState = app.state.hub
    folder = Path(os.environ[SHARED_FOLDER]).parent
    hub = Hub(llm.client, folder, state.services())
    named = dataclasses.replace(config, served_model_name=app.state.metrics.model)
    setup = FrontendSetup(str(llm.folder), str(folder), named, engine, processor)
    frontends = Frontends(setup, listener, hub, state, fail)
    hub.start()
    frontends.start()
    try:
        yield frontends
    finally:
        await frontends.end(0)
        await hub.stop()


@contextlib.contextmanager
def shared_folder(config: ServerConfig) -> Iterator[None]:
    """Of the hub's sockets and all front-ends' numbers; nobody else may enter it."""
    if config.frontends == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="vl2-") as folder:
        numbers = Path(folder) / "metrics"
        numbers.mkdir()
        os.environ[SHARED_FOLDER] = str(numbers)
        try:
            yield
        finally:
            del os.environ[SHARED_FOLDER]


class Frontends:
    """Keeps `config.frontends` processes alive. Lives on the hub's event loop."""

    def __init__(
        self,
        setup: FrontendSetup,
        listener: socket.socket,
        hub: Hub,
        state: HubState,
        fail: Callable[[VL2Error], None],
    ) -> None:
        self._setup, self._listener, self._hub, self._state, self._fail = setup, listener, hub, state, fail
        self._processes: dict[str, Process] = {}
        self._numbers = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_ending = False

    @property
    def http_socket(self) -> str:
        return http_socket(self._setup.hub_folder)

    @property
    def are_welcoming(self) -> bool:
        """Whether all of them take questions."""
        return self._hub.num_welcoming >= self._setup.server.frontends

    def start(self) -> None:
        self._tasks = [asyncio.ensure_future(self._keep_alive(idx)) for idx in range(self._setup.server.frontends)]

    def terminate(self) -> None:
        """The first time they drain, the second time they cut what runs."""
        self._is_ending = True
        for process in self._processes.values():
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)

    async def end(self, timeout_s: float) -> None:
        """Returns when all have ended; those that have not in time are killed."""
        if not self._is_ending:
            self._listener.close()  # theirs stay open until they have drained
            self.terminate()
        _, late = await asyncio.wait(self._tasks, timeout=timeout_s + KILL_AFTER_S)
        for process in self._processes.values():
            if late and process.returncode is None:
                process.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep_alive(self, idx: int) -> None:
        num_failed = 0
        while True:
            started_s = time.monotonic()
            ending = await self._live(idx)
            if self._is_ending:
                return
            num_failed = num_failed + 1 if time.monotonic() - started_s < START_S else 0
            if num_failed >= MAX_FAILED_STARTS:
                self._fail(EngineError(f"front-end {idx} could not be kept alive: {ending}; the log shows why"))
                return
            logger.error("front-end %d died (%s); it is started again", idx, ending)

    async def _live(self, idx: int) -> str:
        """One life of a front-end; returns how it ended."""
        from vl2.server.metrics import forget_process

        name = f"{idx}.{next(self._numbers)}"
        fd = self._listener.fileno()
        command = (sys.executable, "-m", "vl2.cli.frontend", name, str(fd))
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, pass_fds=(fd,), start_new_session=True)
        self._processes[name] = process
        assert process.stdin is not None
        data = self._setup.encode()
        process.stdin.write(len(data).to_bytes(8, "big") + data)
        code = await process.wait()
        del self._processes[name]
        self._hub.forget(name)
        self._state.forget(name)
        forget_process(process.pid)
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def http_socket(hub_folder: str) -> str:
    """Of the hub's own HTTP server."""
    return f"{hub_folder}/http"
