"""A thousand streams at a time on nano, most of them queued."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import psutil
import pytest

from e2e.server_process import LIMIT_S, Server, serving, wait_until

NUM_STREAMS = 1000
MAX_TOKENS = 6
MAX_GROWTH_BYTES = 400 * 2**20
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Any:
    with serving("nano", "--max-queue", "2000", "--log-level", "warning") as server:
        yield server


@asynccontextmanager
async def asking(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=NUM_STREAMS)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=LIMIT_S) as http:
        yield http


def body(idx: int, **fields: Any) -> dict[str, Any]:
    question = {"role": "user", "content": f"Question {idx % 7}"}
    options = {"include_usage": True}
    return {"messages": [question], "stream": True, "stream_options": options, "max_tokens": MAX_TOKENS} | fields


def whole_text(text: str) -> str:
    """Of a stream that lacks nothing."""
    *events, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert choices[-1]["finish_reason"] in ("stop", "length") and chunks[-1]["usage"]["completion_tokens"] > 0
    return "".join(choice["delta"].get("content", "") for choice in choices)


def engine_number(server: Server, name: str) -> float:
    lines = httpx.get(server.url + "/metrics", timeout=LIMIT_S).text.splitlines()
    found = [line.split()[1] for line in lines if line.startswith(f"vl2_engine_{name}{{")]
    return float(found[0]) if found else math.nan  # an engine that has much to do may not answer in time


def num_running(server: Server) -> float:
    return engine_number(server, "running_sequences")


def test_none_is_dropped_each_is_whole_and_memory_is_bounded(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss

    async def main() -> list[str]:
        async with asking(server) as http:
            answers = await asyncio.gather(
                *(http.post("/v1/chat/completions", json=body(idx)) for idx in range(NUM_STREAMS))
            )
        assert {answer.status_code for answer in answers} == {200}
        return [whole_text(answer.text) for answer in answers]

    texts = asyncio.run(main())
    assert all(len({texts[idx] for idx in range(kind, NUM_STREAMS, 7)}) == 1 for kind in range(7))  # greedy
    assert process.memory_info().rss - before < MAX_GROWTH_BYTES


def test_streams_whose_readers_leave_are_over_long_before_their_end(server: Server) -> None:
    num_streams, max_tokens = 200, 3000

    async def main() -> None:
        async with asking(server) as http:
            long = {"max_tokens": max_tokens, "ignore_eos": True}
            tasks = [
                asyncio.ensure_future(http.post("/v1/chat/completions", json=body(idx, **long)))
                for idx in range(num_streams)
            ]
            while not await asyncio.to_thread(num_running, server) >= 32:
                pass
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    before = engine_number(server, "generated_tokens_total")
    asyncio.run(main())
    wait_until(lambda: num_running(server) == 0)
    generated = engine_number(server, "generated_tokens_total") - before
    assert generated < num_streams * max_tokens / 2, "nobody was there to read more"
