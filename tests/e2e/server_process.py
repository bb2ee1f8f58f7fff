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


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str

    @property
    def engine_pid(self) -> int:
        """Of the engine's own process."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(child.pid for child in children if "vl2.engine.worker" in child.cmdline())

    def status(self, path: str) -> int:
        return httpx.get(self.url + path, timeout=10).status_code


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
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def wait_until(condition: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until it held. Raises: AssertionError when it does not in time."""
    started = time.monotonic()
    pause = threading.Event()
    while not condition():
        assert time.monotonic() - started < timeout_s, f"not within {timeout_s} s"
        pause.wait(0.02)
    return time.monotonic() - started
