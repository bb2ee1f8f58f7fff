"""A real `vl2 serve` on loopback for as long as a benchmark needs it, and pictures to send it."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import Image


@contextmanager
def serving(
    model: str, *flags: str, environment: dict[str, str] | None = None, log: IO[bytes] | None = None
) -> Iterator[int]:
    """The port of a server that is ready; `log` is its standard error.

    Raises: RuntimeError when it ends before, with what it said.
    """
    command = [sys.executable, "-m", "vl2", "serve", model, "--port", "0", "--log-level", "warning", *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()  # "… answers at http://127.0.0.1:8000 …", once the model is loaded
        address = re.search(r"http://[\w.]+:(\d+)", line)
        if address is None:
            raise RuntimeError(f"{' '.join(command)} did not start: {line.strip() or 'its log says why'}")
        yield int(address[1])
    finally:
        server.terminate()
        server.wait(20)


def picture_url(width: int, height: int, seed: int, image_format: str, quality: int = 75) -> str:
    """A data URL of a picture like no other: soft colours with some grain, as hard to compress as a photograph."""
    dice = np.random.default_rng(seed)
    soft = Image.fromarray(dice.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8))
    pixels = np.asarray(soft.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels += dice.integers(-6, 7, (height, width, 1), dtype=np.int16)
    file = io.BytesIO()
    options = {"quality": quality} if image_format == "JPEG" else {}
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, image_format, **options)
    return f"data:image/{image_format.lower()};base64," + base64.b64encode(file.getvalue()).decode()
