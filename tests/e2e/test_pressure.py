"""More work than fits: a pool for four of the largest requests, 750 of random shape, a third cancelled midway."""

import asyncio
import random

import httpx
import psutil
import pytest

from golden_cases import GOLDEN_ROOT, load_variant
from tests.e2e.server_process import serving
from tests.e2e.test_serve import data_url

NUM_REQUESTS, NUM_MORE, NUM_CLIENTS = 500, 250, 48
MAX_ROUNDS = 4
CONTEXT = 800
PICTURES = sorted((GOLDEN_ROOT / "images/g76").iterdir()) + sorted((GOLDEN_ROOT / "images/extra").iterdir())


def random_body(dice: random.Random) -> dict:
    """0 to 9 pictures and up to a context of words, some too many for it."""
    pictures = [
        {"type": "image_url", "image_url": {"url": data_url(dice.choice(PICTURES))}}
        for _ in range(dice.choice([0, 0, 1, 2, 9]))
    ]
    words = "word " * int(CONTEXT * 0.45 * dice.random() ** 3)
    return {
        "messages": [{"role": "user", "content": [*pictures, {"type": "text", "text": words + "?"}]}],
        "max_tokens": dice.randint(1, 60),
        "temperature": 1.0,
        "seed": dice.randint(0, 9),
        "stream": True,
        "ignore_eos": True,
        "n": dice.choice([1, 1, 1, 2]),
    }


async def one(client: httpx.AsyncClient, dice: random.Random) -> str:
    """How it ended. Every request must end well, be refused with a reason, or be cancelled by us."""
    body, cancel_after = random_body(dice), dice.choice([None, None, dice.randint(1, 20)])
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            await response.aread()
            assert response.status_code in (400, 429), response.text
            assert response.json()["error"]["message"]
            return str(response.status_code)
        lines = 0
        async for line in response.aiter_lines():
            assert '"error"' not in line, line
            lines += bool(line)
            if cancel_after is not None and lines > cancel_after:
                return "cancelled"
        assert line == "" or line == "data: [DONE]"
        return "done"


async def traffic(url: str, num_requests: int, seed: int) -> dict[str, int]:
    dice = random.Random(seed)
    endings: dict[str, int] = {}
    todo = iter(range(num_requests))
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:

        async def worker() -> None:
            for _ in todo:
                ending = await one(client, dice)
                endings[ending] = endings.get(ending, 0) + 1

        await asyncio.gather(*(worker() for _ in range(NUM_CLIENTS)))
    return endings


def resident_bytes(pid: int) -> int:
    return psutil.Process(pid).memory_info().rss


@pytest.mark.slow
async def test_nothing_is_lost_and_nothing_grows():
    flags = ("--max-context-tokens", str(CONTEXT), "--kv-cache-tokens", str(4 * CONTEXT), "--max-queue", "40")
    with serving(
        load_variant("mla-greedy").folder, *flags, "--image-cache-tiles", "32", "--log-level", "error"
    ) as server:
        await traffic(server.url, NUM_REQUESTS, seed=1)  # until oneDNN has compiled for nearly every number of rows
        pids = (server.process.pid, server.engine_pid)
        after = [resident_bytes(pid) for pid in pids]
        for seed in range(2, 2 + MAX_ROUNDS):  # what leaks, grows every time; a compiler's cache does until it is full
            before = after
            endings = await traffic(server.url, NUM_MORE, seed)
            after = [resident_bytes(pid) for pid in pids]
            assert sum(endings.values()) == NUM_MORE
            assert endings["done"] > NUM_MORE / 3 and endings["cancelled"] > NUM_MORE / 10 and endings["400"] > 0
            if all(is_now < 1.05 * was for was, is_now in zip(before, after, strict=True)):
                break
        else:
            raise AssertionError(f"{before} bytes before the last round, {after} after it")
        stats = httpx.get(server.url + "/metrics").text
        assert "vl2_engine_running_sequences" in stats and server.engine_pid == pids[1], "it never died"
