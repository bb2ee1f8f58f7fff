"""What metrics and logs cost: nano's throughput with them over without, pair by pair.

python bench/telemetry.py [--pairs 40]

Two servers run side by side on loopback and take turns with the same load: eight streams at a time. The one is as it
ships, scraped every second and logging to a file; in the other nothing is counted, neither by the server nor by its
engine, and nothing logged. The order within a pair alternates.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from common import report

STREAMS, REQUESTS, TOKENS = 8, 24, 48
NOTHING_IS_COUNTED = """
import prometheus_client, vl2.engine.meter
nothing = lambda *args, **kwargs: None
for kind in (prometheus_client.Counter, prometheus_client.Gauge):
    kind.inc = nothing
prometheus_client.Gauge.dec = prometheus_client.Gauge.set = nothing
prometheus_client.Histogram.observe = nothing
vl2.engine.meter.StepMeter.observe = nothing
"""
T_95 = {
    10: 2.228,
    20: 2.086,
    30: 2.042,
    40: 2.021,
    60: 2.000,
    120: 1.980,
}  # Student's, two-sided, by degrees of freedom


@contextmanager
def serving(*flags: str, customize: str = "") -> Iterator[str]:
    """The URL of a server; `customize` runs first in each of its processes."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        (Path(folder) / "sitecustomize.py").write_text(customize)
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "vl2", "serve", "nano", "--port", "0", *flags]
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | {"PYTHONPATH": path}
        )
        try:
            assert server.stdout is not None
            address = re.search(r"http://[\w.]+:\d+", server.stdout.readline())
            assert address is not None, "the server did not start"
            yield address[0]
        finally:
            server.terminate()
            server.wait(20)


@contextmanager
def scraping(url: str) -> Iterator[None]:
    """Once a second, more often than anyone does."""
    is_over = threading.Event()

    def scrape() -> None:
        while not is_over.wait(1):
            httpx.get(url + "/metrics").raise_for_status()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


async def tokens_per_s(url: str) -> float:
    numbers = iter(range(REQUESTS))

    async def client_loop(client: httpx.AsyncClient) -> None:
        for number in numbers:
            ask = [{"role": "user", "content": f"Question {number}"}]
            body = {"messages": ask, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                response.raise_for_status()
                async for _ in response.aiter_raw():
                    pass

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        started_s = time.perf_counter()
        await asyncio.gather(*(client_loop(client) for _ in range(STREAMS)))
        return REQUESTS * TOKENS / (time.perf_counter() - started_s)


def measure(num_pairs: int) -> dict[str, float]:
    logs = []
    with (
        serving("--log-level", "info") as on,
        serving("--log-level", "error", customize=NOTHING_IS_COUNTED) as off,
        scraping(on),
    ):
        assert "vl2_generated_tokens_total" in httpx.get(on + "/metrics").text
        for url in (on, off):
            asyncio.run(tokens_per_s(url))
        counted = {url: httpx.get(url + "/metrics").text for url in (on, off)}
        assert 'vl2_generated_tokens_total{model="nano"} 0.0' in counted[off]
        assert 'vl2_generated_tokens_total{model="nano"} 0.0' not in counted[on]
        for pair in range(num_pairs):
            found = {url: asyncio.run(tokens_per_s(url)) for url in ((on, off) if pair % 2 else (off, on))}
            logs.append(math.log(found[on] / found[off]))
    middle = statistics.mean(logs)
    half = T_95[max(n for n in T_95 if n <= max(10, num_pairs - 1))] * statistics.stdev(logs) / math.sqrt(num_pairs)
    return {
        "pairs": num_pairs,
        "throughput, on over off": math.exp(middle),
        "95 % interval, low": math.exp(middle - half),
        "95 % interval, high": math.exp(middle + half),
        "median of the pairs": math.exp(statistics.median(logs)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    report("telemetry", measure(parser.parse_args().pairs))


if __name__ == "__main__":
    main()
