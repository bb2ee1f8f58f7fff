"""Decoding in a process that can be killed: for formats whose decoders are large, old or can be made to run for ever.

A process takes one job at a time over its standard streams and is used again. One that is late, or dies, costs the
picture that it was at, and no other.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from typing import Any, BinaryIO

from PIL import Image

from vl2.core.config import ProcessorConfig
from vl2.core.errors import InvalidImage, TooLarge

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


class DecoderPool:
    """Threads take a process each; there are at most `MAX_PROCESSES`."""

    def __init__(self) -> None:
        self._gate = threading.BoundedSemaphore(MAX_PROCESSES)
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self.num_killed = 0

    def run(self, job: dict[str, Any], data: bytes, limits: ProcessorConfig, what: str) -> list[Image.Image]:
        options = {
            "max_image_pixels": limits.max_image_pixels,
            "max_pdf_pages": limits.max_pdf_pages,
            "exif": limits.exif,
        }
        with self._gate:
            worker = self._take(limits.decode_memory_bytes)
            is_good = False
            try:
                head, pixels = worker.run(job | options, data, limits.decode_timeout_s)
                is_good = worker.num_jobs < MAX_JOBS
            except (EOFError, OSError):
                self.num_killed += 1
                raise InvalidImage(self._reason(worker, limits, what)) from None
            finally:
                self._give(worker, is_good)
        if "error" in head:
            raise (TooLarge if head["is_too_large"] else InvalidImage)(head["error"])
        return _pictures(head["sizes"], pixels)

    def _reason(self, worker: _Worker, limits: ProcessorConfig, what: str) -> str:
        if worker.was_killed:
            return f"{what} could not be decoded within {limits.decode_timeout_s:g} s (decode_timeout_s)"
        return f"{what} cannot be decoded: its decoder crashed, or wanted more than {limits.decode_memory_bytes} bytes"

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


POOL = DecoderPool()


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
