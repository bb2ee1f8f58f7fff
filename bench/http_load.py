"""Pictures through HTTP: a server with random weights on loopback, distinct JPEG files, one output token."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import httpx
from serving import picture_url, serving

SIZES = ((384, 384), (1152, 768))
STREAMS, ANSWER, CLIENTS = 256, 128, 4
WORDS = "please say in a few words what can be seen on this picture and where it is " * 3
FLAGS = (
    "--random-weights --device cuda --no-prefix-cache --max-step-tiles 64 --max-sequences 256 --max-step-tokens 8192"
)


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
    started_s = time.perf_counter()
    with serving(str(folder), *FLAGS.split()) as port:
        url = f"http://127.0.0.1:{port}"
        rows = {"start until ready through the CLI, s": time.perf_counter() - started_s}
        with httpx.Client(base_url=url, timeout=300) as client:
            for size in SIZES:
                name = f"{size[0]} × {size[1]}"
                rows[f"first token, one {name} picture + 64 tokens, HTTP, ms"] = 1e3 * _median_s(client, size, 1)
                rows[f"picture {name} to 32 answer tokens, HTTP, ms"] = 1e3 * _median_s(client, size, 32)
                rows[f"pictures/s, 64 at once, {name}, HTTP"] = asyncio.run(_pictures_per_s(url, size))
        rows[f"{STREAMS} streams 1024 in / {ANSWER} out, HTTP, output tok/s"] = _streamed_tokens_per_s(port)
    return rows


def jpeg(size: tuple[int, int], seed: int) -> str:
    return picture_url(*size, seed, "JPEG", quality=90)


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


def _streamed_tokens_per_s(port: int) -> float:
    """As `gpu.py`'s row in process: all at once, about 1,024 tokens of prompt each. Run twice, the second counts.

    The clients are processes of their own that only look for the end: a client library takes longer for an event than
    the server.
    """
    num_words = _words_of(port, 1024)
    with ProcessPoolExecutor(CLIENTS, mp_context=get_context("spawn")) as clients:
        for first in (0, STREAMS):
            seeds = [range(first + i, first + STREAMS, CLIENTS) for i in range(CLIENTS)]
            started_s = time.perf_counter()
            list(clients.map(_read_streams, [port] * CLIENTS, seeds, [num_words] * CLIENTS))
            seconds = time.perf_counter() - started_s
    return STREAMS * ANSWER / seconds


def _words_of(port: int, num_tokens: int) -> int:
    """How many words make a prompt of about so many tokens."""
    words = WORDS.split()
    asked = dict(model="default", prompt=" ".join(words))
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/tokenize", json=asked).raise_for_status()
    return int(num_tokens * len(words) / answer.json()["count"])


def _read_streams(port: int, seeds: range, num_words: int) -> None:
    asyncio.run(_read_all(port, seeds, num_words))


async def _read_all(port: int, seeds: range, num_words: int) -> None:
    await asyncio.gather(*(_read_stream(port, seed, num_words) for seed in seeds))


async def _read_stream(port: int, seed: int, num_words: int) -> None:
    text = " ".join(random.Random(seed).choices(WORDS.split(), k=num_words))
    asked = dict(
        model="default", messages=[{"role": "user", "content": text}], max_tokens=ANSWER, temperature=0,
        ignore_eos=True, stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    sent = json.dumps(asked)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(sent)}\r\n\r\n{sent}".encode())
    end = b""
    while b"[DONE]" not in end:
        part = await reader.read(1 << 16)
        assert part, end
        end = (end + part)[-2000:]
    assert b'"completion_tokens":%d' % ANSWER in end.replace(b" ", b""), end
    writer.close()
