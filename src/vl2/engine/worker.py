"""The loop around an engine, and the process around the loop.

`python -m vl2.engine.worker ADDRESS` is started by `transport.ProcessTransport`, which sends the folder and the
configuration as the first message. The process ends with its parent: its standard input is a pipe that closes then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
import zmq

from vl2.core.config import EngineConfig
from vl2.core.errors import SetupError
from vl2.core.heap import settle
from vl2.core.logs import configure_logging
from vl2.engine.instructions import limit_instructions
from vl2.engine.protocol import (
    Abort,
    Add,
    AskStats,
    Command,
    Events,
    LoadProgress,
    Ping,
    Pong,
    Ready,
    Report,
    SetupFailed,
    StatsReport,
    Stop,
    decode_command,
    encode,
)
from vl2.engine.threads import limit_spinning

log = logging.getLogger(__name__)

PROGRESS_STEP = 0.01


class WorkerSetup(msgspec.Struct, frozen=True):
    """First message to a worker process."""

    folder: str
    config: EngineConfig
    log_level: int
    log_format: str = "text"


class Inbox(Protocol):
    def get(self, *, wait: bool) -> Command | None:
        """The next command; without `wait` None when there is none."""


def run_engine(folder: Path, config: EngineConfig, inbox: Inbox, emit: Callable[[Report], None]) -> None:
    """Load the model, then take commands and step until `Stop`. Commands are taken between steps."""
    limit_spinning()
    limit_instructions(config.deterministic is not False)
    try:
        from vl2.engine.engine import Engine  # imports torch, which only this side of the seam needs

        engine = Engine(folder, config, _progress_reporter(emit))
    except SetupError as error:
        emit(SetupFailed(error.message))
        return
    except Exception as error:
        emit(SetupFailed(_explained(error)))
        return
    emit(Ready(engine.info))
    while True:
        command = inbox.get(wait=not engine.has_work)
        while command is not None:
            match command:
                case Add(request):
                    engine.add(request)
                case Abort(request_id, choice_idx):
                    engine.abort(request_id, choice_idx)
                case AskStats(query_id):
                    emit(StatsReport(query_id, engine.stats()))
                case Ping():
                    emit(Pong())
                case Stop():
                    return
            command = inbox.get(wait=False)
        if engine.has_work and (events := engine.step()):
            emit(Events(events))


def _explained(error: Exception) -> str:
    """One line about what no check foresaw; the whole story goes to the log, unless it is only a lack of memory."""
    first_line = (str(error).strip().splitlines() or ["no message"])[0]
    what = f"{type(error).__name__}: {first_line}"
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's
    if is_memory or "allocate memory" in what:
        return (
            f"there is not enough memory to load the model ({what}); free some, or use --dtype bfloat16, "
            f"a smaller model, fewer --replicas, or lower --kv-cache-tokens or --max-context-tokens"
        )
    log.error("the engine cannot start", exc_info=error)
    return f"the engine cannot start: {what}; its log shows where"


def _progress_reporter(emit: Callable[[Report], None]) -> Callable[[int, int], None]:
    """At most a hundred reports a load."""
    reported = -1.0

    def report(done: int, total: int) -> None:
        nonlocal reported
        if done == total or done / total >= reported + PROGRESS_STEP:
            reported = done / total
            emit(LoadProgress(done, total))

    return report


class QueueInbox:
    """Commands from another thread of this process."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[Command] = queue.SimpleQueue()

    def get(self, *, wait: bool) -> Command | None:
        try:
            return self.queue.get(block=wait)
        except queue.Empty:
            return None


class SocketInbox:
    """Commands from another process."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket

    def get(self, *, wait: bool) -> Command | None:
        if not wait and not self._socket.poll(0):
            return None
        return decode_command(self._socket.recv_multipart(copy=False))


def main(address: str) -> None:
    _end_with_parent(Path(address.removeprefix("ipc://")))
    context = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    socket.set_hwm(0)
    socket.connect(address)
    setup = msgspec.msgpack.decode(socket.recv(), type=WorkerSetup)
    who = f"replica {setup.config.replica_idx}" if setup.config.replicas > 1 else ""
    configure_logging(setup.log_level, setup.log_format, who)

    def emit(report: Report) -> None:
        if isinstance(report, Ready):
            settle()
        socket.send_multipart(encode(report))

    code = 0
    try:
        run_engine(Path(setup.folder), setup.config, SocketInbox(socket), emit)
    except Exception:
        log.critical("the engine ends", exc_info=True)
        code = 1
    socket.close(linger=1000)
    context.term()  # when the last report is on its way
    os._exit(code)  # torch would take half a second to take itself apart, and after a GPU's failure perhaps for ever


def _end_with_parent(socket_file: Path) -> None:
    """A parent that was killed left the folder of its socket behind."""

    def watch() -> None:
        while os.read(0, 4096):  # not sys.stdin, whose lock would be held while the interpreter shuts down
            pass
        with contextlib.suppress(OSError):
            socket_file.unlink()
            socket_file.parent.rmdir()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


if __name__ == "__main__":
    main(sys.argv[1])
