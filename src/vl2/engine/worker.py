"""The loop around an engine, and the process around the loop.

`python -m vl2.engine.worker ADDRESS` is started by `transport.ProcessTransport`, which sends the folder and the
configuration as the first message. The process ends with its parent: its standard input is a pipe that closes then.
"""

from __future__ import annotations

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
from vl2.engine.protocol import (
    Abort,
    Add,
    AskStats,
    Command,
    Events,
    LoadProgress,
    Ready,
    Report,
    SetupFailed,
    StatsReport,
    Stop,
    decode_command,
    encode,
)

PROGRESS_STEP = 0.01


class WorkerSetup(msgspec.Struct, frozen=True):
    """First message to a worker process."""

    folder: str
    config: EngineConfig
    log_level: int


class Inbox(Protocol):
    def get(self, *, wait: bool) -> Command | None:
        """The next command; without `wait` None when there is none."""


def run_engine(folder: Path, config: EngineConfig, inbox: Inbox, emit: Callable[[Report], None]) -> None:
    """Load the model, then take commands and step until `Stop`. Commands are taken between steps."""
    # Threads that wait for each other sleep instead of spinning. With spinning, one other busy process on the cores
    # (the HTTP server, say) makes every step wait for the scheduler: 2 tokens/s instead of 170. OpenMP reads this once,
    # when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from vl2.engine.engine import Engine  # imports torch, which only this side of the seam needs

    try:
        engine = Engine(folder, config, _progress_reporter(emit))
    except SetupError as error:
        emit(SetupFailed(error.message))
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
                case Stop():
                    return
            command = inbox.get(wait=False)
        if engine.has_work and (events := engine.step()):
            emit(Events(events))


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
        return decode_command(self._socket.recv())


def main(address: str) -> None:
    _end_with_parent()
    socket: zmq.Socket[bytes] = zmq.Context().socket(zmq.PAIR)
    socket.set_hwm(0)
    socket.connect(address)
    setup = msgspec.msgpack.decode(socket.recv(), type=WorkerSetup)
    logging.basicConfig(level=setup.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run_engine(Path(setup.folder), setup.config, SocketInbox(socket), lambda report: socket.send(encode(report)))
    socket.close(linger=1000)


def _end_with_parent() -> None:
    def watch() -> None:
        while os.read(0, 4096):  # not sys.stdin, whose lock would be held while the interpreter shuts down
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


if __name__ == "__main__":
    main(sys.argv[1])
