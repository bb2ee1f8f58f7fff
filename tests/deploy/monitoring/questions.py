"""Clients that remember what they sent, what came back, and when."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.server_process import LIMIT_S

SCENE = Path(__file__).parents[3] / "docs/images/scene.png"
CHAT = "/v1/chat/completions"


TIMING = {"X-VL2-Timing": "1"}  # the engine's own times come with the usage


@dataclass
class Seen:
    """By all clients of all servers. Seconds of each request: by the engine's clock, and by the client's."""

    statuses: Counter[int] = field(default_factory=Counter)
    prompt_tokens: int = 0
    image_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    first_token_s: list[tuple[float, float]] = field(default_factory=list)
    request_s: list[tuple[float, float]] = field(default_factory=list)  # refused ones too


def body(idx: int, *, num_tokens: int = 12) -> dict[str, Any]:
    """Every third question has a picture, and some pictures come again."""
    text: Any = {"type": "text", "text": f"Question {idx % 7}: what is in the picture?"}
    parts = [text]
    if idx % 3 == 0:
        data = base64.b64encode(SCENE.read_bytes()).decode()
        parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + data}}, text]
    return {
        "model": "default",
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def plain(idx: int, *, num_tokens: int = 12) -> dict[str, Any]:
    """Not streamed."""
    asked = body(idx, num_tokens=num_tokens) | {"stream": False}
    del asked["stream_options"]
    return asked


async def ask(client: httpx.AsyncClient, url: str, asked: dict[str, Any], seen: Seen) -> None:
    started_s = time.perf_counter()
    first_s = None
    async with client.stream("POST", url + CHAT, json=asked, headers=TIMING) as response:
        seen.statuses[response.status_code] += 1
        if response.status_code != 200:
            await response.aread()
            seen.request_s.append((0.0, time.perf_counter() - started_s))
            return
        usage: dict[str, Any] = {}
        async for line in response.aiter_lines():
            if first_s is None and line.startswith("data:"):
                first_s = time.perf_counter() - started_s
            if line.startswith("data: {"):
                usage = json.loads(line[6:]).get("usage") or usage
    assert first_s is not None
    computed_s = sum(usage["timing"][f"{part}_s"] for part in ("queue", "vision", "prefill"))
    seen.first_token_s.append((computed_s, first_s))
    seen.request_s.append((computed_s + usage["timing"]["decode_s"], time.perf_counter() - started_s))
    seen.prompt_tokens += usage["prompt_tokens"]
    seen.image_tokens += usage["prompt_tokens_details"]["image_tokens"]
    seen.cached_tokens += usage["prompt_tokens_details"]["cached_tokens"]
    seen.generated_tokens += usage["completion_tokens"]


async def load(urls: Sequence[str], *, num_requests: int, num_clients: int) -> Seen:
    """Good questions to all servers in turn, and now and then one that is refused."""
    seen, numbers = Seen(), iter(range(num_requests))

    async def client_loop(client: httpx.AsyncClient) -> None:
        for idx in numbers:
            asked = body(idx) if idx % 10 else {"messages": "none"}
            await ask(client, urls[idx % len(urls)], asked, seen)

    async with httpx.AsyncClient(timeout=LIMIT_S) as client:
        await asyncio.gather(*(client_loop(client) for _ in range(num_clients)))
    return seen
