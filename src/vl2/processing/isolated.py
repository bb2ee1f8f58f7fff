"""Work in a process that can be killed: decoders that are large, old or can be made to run for ever; grammars likewise.

A process takes one job at a time over its standard streams and is used again. One that is late, or dies, costs the
picture or grammar that it was at, and no other.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from collections import OrderedDict
from typing import Any, BinaryIO

from PIL import Image

from vl2.core.config import ProcessorConfig
from vl2.core.errors import InvalidImage, InvalidRequest, TooLarge
from vl2.core.types import Grammar

MAX_PROCESSES = min(4, os.cpu_count() or 1)
MAX_IDLE = 2
MAX_JOBS = 500  # of one process: what a decoder leaks goes with it
_LENGTHS = struct.Struct(">II")


def decode_picture(data: bytes, limits: ProcessorConfig) -> Image.Image:
    """As `images.decode_bytes`, elsewhere. Raises: InvalidImage."""
    return POOL.run({"job": "picture"}, data, limits, "the picture")[0]


def render_pdf(data: bytes, pages: str | None, limits: ProcessorConfig) -> list[Image.Image]:
    """Pages of a PDF, as `pdf.render` draws them. Raises: InvalidImage."""
    return POOL.run({"job": "pdf", "pages": pages}, data, limits, "the PDF")


def check_grammar(grammar: Grammar, limits: ProcessorConfig) -> None:
    """As `constrain.check_grammar`, elsewhere, and once for each of the last `MAX_CHECKED`. Raises: InvalidRequest."""
    if grammar.kind in ("grounding", "json_object"):  # ours
        return
    with _checked_lock:
        if grammar in _checked:
            _checked.move_to_end(grammar)
            return
    job, spec = {"job": "grammar", "kind": grammar.kind}, json.dumps(grammar.spec).encode()
    try:
        head, _ = GRAMMARS.ask(job, spec, limits.decode_memory_bytes, limits.grammar_timeout_s)
    except Lost as lost:
        why = f"takes longer than {limits.grammar_timeout_s:g} s (grammar_timeout_s)"
        crash = f"needs more than {limits.decode_memory_bytes} bytes (decode_memory_bytes), or crashed its compiler"
        message = f"the {grammar.kind} grammar {why if lost.was_late else crash}; simplify it"
        raise InvalidRequest(message, param="grammar") from None
    if "error" in head:
        raise InvalidRequest(head["error"], param="grammar")
    with _checked_lock:
        _checked[grammar] = None
        if len(_checked) > MAX_CHECKED:
            _checked.popitem(last=False)


MAX_CHECKED = 256
_checked: OrderedDict[Grammar, None] = OrderedDict()  # least recently used first
_checked_lock = threading.Lock()


class Lost(Exception):
    """The process is gone, and the job with it."""

    def __init__(self, was_late: bool) -> None:
        super().__init__()
        self.was_late = was_late


class _Worker:
    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self.num_jobs = 0
        self.was_killed = False
        command = [sys.executable, "-m", "vl2.processing.decode_worker", str(memory_bytes)]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL  # decoders complain about what strangers send
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null)

    def run(self, job: dict[str, Any], data: bytes, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """Raises: EOFError, OSError when the process is gone."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.num_jobs += 1
        timer = threading.Timer(timeout_s, self.kill)
        timer.start()
        try:
            write_frame(self.process.stdin, job, data)
            return read_frame(self.process.stdout)
        finally:
            timer.cancel()

    def kill(self) -> None:
        self.was_killed = True
        self.process.kill()

    def close(self) -> None:
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait()


class WorkerPool:
    """Threads take a process each; there are at most `max_processes`."""

    def __init__(self, max_processes: int) -> None:
        self._gate = threading.BoundedSemaphore(max_processes)
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self.num_killed = 0

    def run(self, job: dict[str, Any], data: bytes, limits: ProcessorConfig, what: str) -> list[Image.Image]:
        options = {
            "max_image_pixels": limits.max_image_pixels,
            "max_pdf_pages": limits.max_pdf_pages,
            "exif": limits.exif,
        }
        try:
            head, pixels = self.ask(job | options, data, limits.decode_memory_bytes, limits.decode_timeout_s)
        except Lost as lost:
            raise InvalidImage(_reason(lost, limits, what)) from None
        if "error" in head:
            raise (TooLarge if head["is_too_large"] else InvalidImage)(head["error"])
        return _pictures(head["sizes"], pixels)

    def ask(
        self, job: dict[str, Any], data: bytes, memory_bytes: int, timeout_s: float
    ) -> tuple[dict[str, Any], bytes]:
        """What the process answers. Raises: Lost."""
        with self._gate:
            worker = self._take(memory_bytes)
            is_good = False
            try:
                answer = worker.run(job, data, timeout_s)
                is_good = worker.num_jobs < MAX_JOBS
                return answer
            except (EOFError, OSError):
                self.num_killed += 1
                raise Lost(worker.was_killed) from None
            finally:
                self._give(worker, is_good)

    def _take(self, memory_bytes: int) -> _Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.memory_bytes == memory_bytes and worker.process.poll() is None:
                    return worker
                worker.close()
        return _Worker(memory_bytes)

    def _give(self, worker: _Worker, is_good: bool) -> None:
        with self._lock:
            if is_good and len(self._idle) < MAX_IDLE:
                self._idle.append(worker)
                return
        worker.close()


POOL = WorkerPool(MAX_PROCESSES)
GRAMMARS = WorkerPool(2)
"""Apart, so that slow grammars keep no picture waiting."""


def _reason(lost: Lost, limits: ProcessorConfig, what: str) -> str:
    if lost.was_late:
        return f"{what} could not be decoded within {limits.decode_timeout_s:g} s (decode_timeout_s)"
    return f"{what} cannot be decoded: its decoder crashed, or wanted more than {limits.decode_memory_bytes} bytes"


def _pictures(sizes: list[tuple[int, int]], pixels: bytes) -> list[Image.Image]:
    images, start = [], 0
    for width, height in sizes:
        end = start + width * height * 3
        images.append(Image.frombytes("RGB", (width, height), pixels[start:end]))
        start = end
    return images


# ---- what crosses: two lengths, JSON, bytes -------------------------------------------------------------------------


def write_frame(stream: BinaryIO | Any, head: dict[str, Any], data: bytes) -> None:
    text = json.dumps(head).encode()
    stream.write(_LENGTHS.pack(len(text), len(data)) + text)
    stream.write(data)
    stream.flush()


def read_frame(stream: BinaryIO | Any) -> tuple[dict[str, Any], bytes]:
    """Raises: EOFError."""
    num_text, num_data = _LENGTHS.unpack(_read(stream, _LENGTHS.size))
    return json.loads(_read(stream, num_text)), _read(stream, num_data)


def _read(stream: BinaryIO | Any, num_bytes: int) -> bytes:
    data: bytes = stream.read(num_bytes)
    if len(data) < num_bytes:
        raise EOFError
    return data
