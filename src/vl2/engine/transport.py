"""How a client reaches its engine: a thread of this process, or a process of its own."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import tempfile
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import zmq

from vl2.core.config import EngineConfig
from vl2.core.logs import current_format
from vl2.engine.channel import Channel
from vl2.engine.protocol import Buffer, Command, Report, SetupFailed, Stop, decode_report, encode
from vl2.engine.worker import QueueInbox, WorkerSetup, run_engine

STOP_TIMEOUT_S = 5.0


class Transport(Protocol):
    """One life of an engine. `on_report` and `on_death` are called on the event loop that `start` was called on."""

    async def start(self, on_report: Callable[[Report], None], on_death: Callable[[str], None]) -> None: ...

    def send(self, command: Command) -> None: ...

    def kill(self, reason: str) -> None:
        """End an engine that does not listen, where that can be done; `on_death` follows with the reason."""

    async def stop(self) -> None: ...


class ThreadTransport:
    """For scripts and tests: no second process, no sockets."""

    def __init__(self, folder: Path, config: EngineConfig) -> None:
        self._folder, self._config = folder, config
        self._inbox = QueueInbox()
        self._thread: threading.Thread | None = None

    async def start(self, on_report: Callable[[Report], None], on_death: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()

        def emit(report: Report) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(on_report, report)

        def run() -> None:
            try:
                run_engine(self._folder, self._config, self._inbox, emit)
            except BaseException as error:
                logging.getLogger(__name__).exception("the engine thread died")
                loop.call_soon_threadsafe(on_death, f"{type(error).__name__}: {error}")

        self._thread = threading.Thread(target=run, daemon=True, name="vl2-engine")
        self._thread.start()

    def send(self, command: Command) -> None:
        self._inbox.queue.put(command)

    def kill(self, reason: str) -> None:
        """A thread cannot be ended from outside; it is used again when it answers."""

    async def stop(self) -> None:
        if self._thread is not None:
            self.send(Stop())
            await asyncio.to_thread(self._thread.join, STOP_TIMEOUT_S)


class ProcessTransport:
    """The engine in its own process, so that JSON, pictures and sockets never delay a step."""

    def __init__(self, folder: Path, config: EngineConfig) -> None:
        self._folder, self._config = folder, config
        self._process: Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._kill_reason: str | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self, on_report: Callable[[Report], None], on_death: Callable[[str], None]) -> None:
        self._folder_for_socket = tempfile.TemporaryDirectory(prefix="vl2-")
        address = f"ipc://{self._folder_for_socket.name}/engine"
        self._channel = Channel(zmq.PAIR)
        self._channel.bind(address)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "vl2.engine.worker", address, stdin=PIPE, start_new_session=True
        )
        setup = WorkerSetup(str(self._folder), self._config, logging.getLogger().getEffectiveLevel(), current_format())

        def receive(frames: Sequence[Buffer]) -> None:
            report = decode_report(frames)
            self._is_stopping |= isinstance(report, SetupFailed)  # its exit is no news then
            on_report(report)

        self._channel.listen(receive)
        self._channel.send([msgspec.msgpack.encode(setup)])
        self._watching = asyncio.create_task(self._watch(self._process, on_death))

    async def _watch(self, process: Process, on_death: Callable[[str], None]) -> None:
        code = await process.wait()
        if not self._is_stopping:
            on_death(self._kill_reason or _ending(code))

    def send(self, command: Command) -> None:
        """A command to a dead engine is dropped: `on_death` ends every stream."""
        if self._process is not None and self._process.returncode is None:
            self._channel.send(encode(command), copy=False)

    def kill(self, reason: str) -> None:
        if self._process is not None and self._process.returncode is None:
            self._kill_reason = reason
            self._process.kill()

    async def stop(self) -> None:
        """End the process, kindly first; idempotent, also after its death."""
        self._is_stopping = True
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            self._channel.send(encode(Stop()))
            try:
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
            except asyncio.TimeoutError:
                process.kill()
                await process.wait()
        self._channel.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        self._folder_for_socket.cleanup()
        self._process = None


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "signal 9: killed from outside, by the kernel when memory runs out"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
