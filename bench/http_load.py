"""Pictures and streams through HTTP: a server with random weights on loopback, distinct JPEG files.

The clients are processes of their own that write bytes and look for the end: a client library takes longer for a
request or an event than the server, and would be what is measured.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
from serving import picture_url, serving

SIZES = ((384, 384), (1152, 768))
PICTURES, PICTURES_AT_ONCE = 384, 64
STREAMS, ANSWER = 256, 128
CLIENTS = 4
WORDS = "please say in a few words what can be seen on this picture and where it is " * 3
QUESTION = 64
"""Tokens of the text beside a picture, without the template's."""
FLAGS = (
    "--random-weights --device cuda --no-prefix-cache --max-step-tiles 64 --max-sequences 256 --max-step-tokens 8192"
)


def picture_rows(folder: Path, frontends: int = 1) -> dict[str, float]:
    """`frontends`: processes that the server has for HTTP, as of `vl2 serve --frontends`."""
    started_s = time.perf_counter()
    with (
        serving(str(folder), *FLAGS.split(), "--frontends", str(frontends)) as port,
        ProcessPoolExecutor(CLIENTS, mp_context=get_context("spawn")) as clients,
    ):
        rows = {"start until ready through the CLI, s": time.perf_counter() - started_s}
        question = _question(port)
        for size in SIZES:
            name = f"{size[0]} × {size[1]}"
            _add_medians(rows, f"first token, one {name} picture + {QUESTION} tokens", port, size, question, 1)
            _add_medians(rows, f"picture {name} to 32 answer tokens", port, size, question, 32)
            turns = [_pictures(size, num, turn, question) for turn, num in enumerate((PICTURES_AT_ONCE, PICTURES))]
            seconds = _all_at_once_s(clients, port, turns)
            rows[f"pictures/s, {PICTURES_AT_ONCE} at once, {name}, HTTP"] = PICTURES / seconds
        seconds = _all_at_once_s(clients, port, [_prompts(port, 0), _prompts(port, 1)], at_once=STREAMS)
        rows[f"{STREAMS} streams 1024 in / {ANSWER} out, HTTP, output tok/s"] = STREAMS * ANSWER / seconds
    return rows


def body(content: Any, max_tokens: int, **more: Any) -> bytes:
    fixed = dict(model="default", temperature=0, ignore_eos=True, max_tokens=max_tokens)
    return json.dumps(fixed | more | {"messages": [{"role": "user", "content": content}]}).encode()


def picture_body(size: tuple[int, int], seed: int, question: str, max_tokens: int) -> bytes:
    url = picture_url(*size, seed, "JPEG", quality=90)
    return body([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}], max_tokens)


def _pictures(size: tuple[int, int], num: int, turn: int, question: str) -> list[bytes]:
    return [picture_body(size, 100_000 * (turn + 1) + i, question, 1) for i in range(num)]


def _count(port: int, text: str) -> int:
    """Tokens."""
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/tokenize", json=dict(model="default", prompt=text))
    return int(answer.raise_for_status().json()["count"])


def _question(port: int) -> str:
    """As many words as have no more than QUESTION tokens."""
    words = WORDS.split()
    return next(text for k in range(len(words), 0, -1) if _count(port, text := " ".join(words[:k])) <= QUESTION)


def _prompts(port: int, turn: int) -> list[bytes]:
    """Streams of about 1,024 tokens of prompt each."""
    words = WORDS.split()
    num_words = int(1024 * len(words) / _count(port, " ".join(words)))
    dice = random.Random(turn)
    return [body(" ".join(dice.choices(words, k=num_words)), ANSWER, stream=True) for _ in range(STREAMS)]


def _add_medians(
    rows: dict[str, float],
    what: str,
    port: int,
    size: tuple[int, int],
    question: str,
    max_tokens: int,
    repeat: int = 12,
) -> None:
    """Milliseconds of one picture after the other, and how many of them the engine had.

    From before the connection is made until the answer's last byte. Without an event loop: making one and taking it
    apart took a millisecond of what was measured.
    """
    bodies = [picture_body(size, max_tokens * 1000 + i, question, max_tokens) for i in range(repeat)]
    whole, in_engine = [], []
    for asked in bodies:
        request = _request(asked)
        started_s = time.perf_counter()
        answer = _ask_alone(port, request)
        whole.append(time.perf_counter() - started_s)
        timing = json.loads(answer.split(b"\r\n\r\n", 1)[1])["usage"]["timing"]
        in_engine.append(sum(timing.values()))
    rows[f"{what}, HTTP, ms"] = 1e3 * statistics.median(whole[2:])
    rows["  of which in the engine, " + what + ", ms"] = 1e3 * statistics.median(in_engine[2:])


def _all_at_once_s(
    clients: ProcessPoolExecutor, port: int, turns: list[list[bytes]], at_once: int = PICTURES_AT_ONCE
) -> float:
    """Seconds of the last turn; those before warm up."""
    seconds = 0.0
    for bodies in turns:
        shares = [bodies[i::CLIENTS] for i in range(CLIENTS)]
        started_s = time.perf_counter()
        list(clients.map(_ask_share, [port] * CLIENTS, shares, [at_once // CLIENTS] * CLIENTS))
        seconds = time.perf_counter() - started_s
    return seconds


def _ask_share(port: int, bodies: list[bytes], at_once: int) -> None:
    asyncio.run(_ask_all(port, bodies, at_once))


async def _ask_all(port: int, bodies: Iterable[bytes], at_once: int) -> None:
    gate = asyncio.Semaphore(at_once)

    async def ask(asked: bytes) -> None:
        async with gate:
            await _ask(port, asked)

    await asyncio.gather(*map(ask, bodies))


async def _ask(port: int, asked: bytes) -> bytes:
    """The answer, or the end of a long one. Raises: AssertionError when it does not come whole."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_request(asked))
    first = end = await reader.read(1 << 16)
    while part := await reader.read(1 << 16):
        end = (end + part)[-2000:]
    _check(first, end)
    writer.close()
    return end


def _ask_alone(port: int, request: bytes) -> bytes:
    """The whole answer, which is short. Raises: AssertionError when it does not come whole."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)
        while part := connection.recv(1 << 16):
            answer += part
    _check(answer, answer)
    return answer


def _request(asked: bytes) -> bytes:
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nX-VL2-Timing: 1\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(asked)}\r\n\r\n"
    return head.encode() + asked


def _check(first: bytes, end: bytes) -> None:
    assert first.startswith(b"HTTP/1.1 200") and (b"[DONE]" in end or b'"usage"' in end), (first[:300], end[-300:])
