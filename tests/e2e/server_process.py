"""A real `vl2 serve` on a free port of loopback, as a user starts it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

LIMIT_S = 180.0
"""Of a wait for what must come: far more than it takes on a machine that others use, too. Nothing is proved by it."""


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str

    @property
    def engine_pids(self) -> list[int]:
        """Of the engines' own processes; in their present lives."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # one that has just died
                found += [child.pid] if "vl2.engine.worker" in child.cmdline() else []
        return found

    @property
    def engine_pid(self) -> int:
        """Of the first."""
        return self.engine_pids[0]

    def status(self, path: str) -> int:
        return httpx.get(self.url + path, timeout=LIMIT_S).status_code


@contextlib.contextmanager
def serving(model: str | Path, *flags: str, **environment: str) -> Iterator[Server]:
    """Until the block ends; the server is ready when it begins."""
    command = [sys.executable, "-m", "vl2", "serve", str(model), "--port", "0", "--threads", "1", *flags]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # "vl2: NAME answers at http://…:PORT (page), …", or nothing if it ended
        assert " answers at " in line, f"vl2 serve said {line!r} and returned {process.poll()}"
        yield Server(process, line.split(" answers at ")[1].split()[0])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@contextlib.contextmanager
def standing_still(*pids: int) -> Iterator[None]:
    """These processes of the test's own do nothing until the block ends, so that what they are at is not over before.

    However fast the machine is: tests that look at work under way, or kill it, need no guess of how long it takes.
    """
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        for pid in pids:
            wait_until(lambda pid=pid: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # the test has killed it
                os.kill(pid, signal.SIGCONT)


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # between the two questions
        return True


def wait_until(condition: Callable[[], object], timeout_s: float = LIMIT_S) -> None:
    """Raises: AssertionError when it does not hold in time."""
    started = time.monotonic()
    pause = threading.Event()
    while not condition():
        assert time.monotonic() - started < timeout_s, f"not within {timeout_s} s"
        pause.wait(0.02)
