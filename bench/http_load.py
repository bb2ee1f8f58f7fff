"""Pictures through HTTP: a server with random weights on loopback, distinct JPEG files, one output token."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

SIZES = ((384, 384), (1152, 768))
WORDS = "please say in a few words what can be seen on this picture and where it is " * 3
FLAGS = (
    "--random-weights --device cuda --no-prefix-cache --max-step-tiles 64 --max-sequences 256 --max-step-tokens 8192"
)


def jpeg(size: tuple[int, int], seed: int) -> str:
    """A data URL of a picture like no other: smooth clouds with some grain, quality 90."""
    dice = np.random.default_rng(seed)
    coarse = Image.fromarray(dice.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = dice.normal(0, 6, (size[1], size[0], 3))
    picture = Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def body(url: str, max_tokens: int) -> dict:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": WORDS}]
    return dict(
        model="default",
        messages=[{"role": "user", "content": parts}],
        max_tokens=max_tokens,
        temperature=0,
        ignore_eos=True,
    )


def picture_rows(folder: Path) -> dict[str, float]:
    server = subprocess.Popen(
        [sys.executable, "-m", "vl2", "serve", str(folder), "--port", "0", *FLAGS.split()],
        stderr=subprocess.PIPE,
        text=True,
    )
    started_s = time.perf_counter()
    try:
        url = _address(server)
        with httpx.Client(base_url=url, timeout=300) as client:
            while client.get("/health/ready").status_code != 200:
                time.sleep(0.1)
            rows = {"start until ready through the CLI, s": time.perf_counter() - started_s}
            for size in SIZES:
                name = f"{size[0]} × {size[1]}"
                rows[f"first token, one {name} picture + 64 tokens, HTTP, ms"] = 1e3 * _median_s(client, size, 1)
                rows[f"picture {name} to 32 answer tokens, HTTP, ms"] = 1e3 * _median_s(client, size, 32)
                rows[f"pictures/s, 64 at once, {name}, HTTP"] = asyncio.run(_pictures_per_s(url, size))
        return rows
    finally:
        server.terminate()
        server.wait()


def _address(server: subprocess.Popen[str]) -> str:
    """What the server says that it listens on; the rest of its log is read away in the background."""
    assert server.stderr is not None
    told = ""
    for line in server.stderr:
        told += line
        found = re.search(r"http://[0-9.]+:[0-9]+", line)
        if found:
            import threading

            threading.Thread(target=lambda: list(server.stderr or ()), daemon=True).start()
            return found[0]
    raise RuntimeError(f"the server ended before it listened: {told[-1000:]}")


def _median_s(client: httpx.Client, size: tuple[int, int], max_tokens: int, repeat: int = 12) -> float:
    bodies = [body(jpeg(size, seed=max_tokens * 1000 + i), max_tokens) for i in range(repeat)]
    seconds = []
    for asked in bodies:
        started_s = time.perf_counter()
        client.post("/v1/chat/completions", json=asked).raise_for_status()
        seconds.append(time.perf_counter() - started_s)
    return statistics.median(seconds[2:])


async def _pictures_per_s(url: str, size: tuple[int, int], num: int = 384, at_once: int = 64) -> float:
    bodies = [body(jpeg(size, seed=100_000 + i), 1) for i in range(num + at_once)]
    gate = asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=at_once)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def ask(asked: dict) -> None:
            async with gate:
                (await client.post("/v1/chat/completions", json=asked)).raise_for_status()

        await asyncio.gather(*map(ask, bodies[:at_once]))
        started_s = time.perf_counter()
        await asyncio.gather(*map(ask, bodies[at_once:]))
        return num / (time.perf_counter() - started_s)
