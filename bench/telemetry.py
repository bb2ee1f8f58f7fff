"""What metrics and logs cost: nano's throughput with them over without, pair by pair.

python bench/telemetry.py [--pairs 40]

Two servers run side by side on loopback and take turns with the same load: eight streams at a time. The one is as it
ships, scraped every 10 s as by the prometheus.yml that ships, and logging to a file; in the other nothing is counted,
neither by the server nor by its engine, and nothing logged. The order within a pair alternates.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from common import report
from serving import serving

STREAMS, REQUESTS, TOKENS = 8, 64, 64
SCRAPE_S = 10
NOTHING_IS_COUNTED = """
import prometheus_client, vl2.engine.meter, vl2.server.metrics.tokens
nothing = lambda *args, **kwargs: None
for kind in (prometheus_client.Counter, prometheus_client.Gauge):
    kind.inc = nothing
prometheus_client.Gauge.dec = prometheus_client.Gauge.set = nothing
prometheus_client.Histogram.observe = nothing
vl2.engine.meter.StepMeter.observe = vl2.server.metrics.tokens.TokenTally.count = nothing
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
def customized(*flags: str, customize: str = "") -> Iterator[str]:
    """The URL of a server; `customize` runs first in each of its processes."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        (Path(folder) / "sitecustomize.py").write_text(customize)
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path}
        with serving("nano", *flags, environment=environment, log=log) as port:
            yield f"http://127.0.0.1:{port}"


@contextmanager
def scraping(url: str) -> Iterator[None]:
    """As often as the shipped prometheus.yml."""
    is_over = threading.Event()

    def scrape() -> None:
        while not is_over.wait(SCRAPE_S):
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


def cpu_s(url: str) -> float:
    """Of the server and its engine, so far: other work on the machine hardly changes it."""
    port = int(url.rsplit(":", 1)[1])
    [server] = {c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
    family = [psutil.Process(server), *psutil.Process(server).children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in family)


def measure(num_pairs: int) -> dict[str, float]:
    speeds, costs = [], []
    with (
        customized("--log-level", "info") as on,
        customized("--log-level", "error", customize=NOTHING_IS_COUNTED) as off,
        scraping(on),
    ):
        for url in (on, off):
            asyncio.run(tokens_per_s(url))
        counted = {url: httpx.get(url + "/metrics").text for url in (on, off)}
        assert 'vl2_generated_tokens_total{model="nano"} 0.0' in counted[off]
        assert 'vl2_generated_tokens_total{model="nano"} 0.0' not in counted[on]
        for pair in range(num_pairs):
            speed, cost = {}, {}
            for url in (on, off) if pair % 2 else (off, on):
                before_s = cpu_s(url)
                speed[url] = asyncio.run(tokens_per_s(url))
                cost[url] = cpu_s(url) - before_s
            speeds.append(speed[on] / speed[off])
            costs.append(cost[on] / cost[off])
    return {"pairs": num_pairs, **interval("throughput", speeds), **interval("CPU time of server and engine", costs)}


def interval(name: str, ratios: list[float]) -> dict[str, float]:
    """Geometric mean of on over off, and its 95 % interval."""
    logs = [math.log(ratio) for ratio in ratios]
    middle, num = statistics.mean(logs), len(logs)
    half = T_95[max(n for n in T_95 if n <= max(10, num - 1))] * statistics.stdev(logs) / math.sqrt(num)
    found = {"": middle, ", 95 % low": middle - half, ", 95 % high": middle + half}
    return {f"{name}, on over off{what}": math.exp(value) for what, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    report("telemetry", measure(parser.parse_args().pairs))


if __name__ == "__main__":
    main()
