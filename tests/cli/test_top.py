"""vl2 top, against the app itself on loopback, and its arithmetic against Prometheus' rules."""

from __future__ import annotations

import dataclasses
import io
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from rich.console import Console

from fakes import INFO, FakeModel
from tests.cli.conftest import Result
from tests.e2e.server_process import LIMIT_S
from tests.live_server import answering
from vl2.cli.readings import Interval, Reading
from vl2.cli.top import screen
from vl2.core.config import ServerConfig
from vl2.core.secret import Secret
from vl2.core.stats import DeviceMemory, EngineStats, GPUReading, ReplicaStats
from vl2.server.app import create_app

RunVL2 = Callable[..., Result]


class Replicas(FakeModel):
    """One on a hot GPU, one that is down."""

    async def replica_stats(self) -> list[ReplicaStats]:
        stats = EngineStats(
            num_running=3, num_waiting=2, num_pages_used=96, num_pages=100, memory=DeviceMemory(1, 2, 0)
        )
        reading = GPUReading(0.93, 72 * 2**30, 80 * 2**30, 640.0, 83.0, ("thermal",))
        return [ReplicaStats(True, stats, reading), ReplicaStats(False, EngineStats())]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    model = Replicas(name="tiny")
    model.info = dataclasses.replace(INFO, device="NVIDIA H100", dtype="bfloat16")
    app = create_app(model, ServerConfig(scrape_key=Secret("s"), api_key=(Secret("k"),)))
    with answering(app) as address:
        yield address


def test_one_screen_tells_requests_times_replicas_and_gpus(
    url: str, vl2: RunVL2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
    httpx.post(url + "/v1/chat/completions", json=body, headers={"Authorization": "Bearer k"}).raise_for_status()
    result = vl2("top", url, "--once", "--key", "s")
    assert result.code == 0, result.stderr
    for text in (
        "tiny bfloat16 NVIDIA H100",
        "ready",
        "down",
        "96%",
        "93%",
        "thermal",
        "72 GiB / 80 GiB",
        "640 W",
        "83 °C",
    ):
        assert text in result.stdout
    [first_token] = [line for line in result.stdout.splitlines() if "first token" in line]
    assert " ms" in first_token


def test_it_goes_on_in_a_terminal_until_ctrl_c(url: str) -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "vl2", "top", url, "--key", "s", "--interval-s", "0.1"]
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, env=os.environ | {"COLUMNS": "120"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # in a shell's background it is ignored
    )  # fmt: skip
    os.close(terminal)
    seen = b""
    while seen.count(b"under way") < 3:
        seen += os.read(controller, 65536)
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) == 130
    os.close(controller)


def test_what_cannot_be_read_is_one_line_that_says_what_to_do(url: str, vl2: RunVL2) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    for args, hint in {
        (f"http://127.0.0.1:{port}",): "is `vl2 serve` running there?",
        (url,): "wants a key; give --key",
        ("ftp://nowhere",): "does not answer",
    }.items():
        result = vl2("top", *args, "--once")
        assert result.code == 2 and hint in result.stderr and len(result.stderr.splitlines()) == 1


def test_rates_are_of_the_interval_and_a_restart_is_no_fall() -> None:
    def reading(total: float, at_s: float) -> Reading:
        registry = CollectorRegistry()
        Counter("vl2_things", "…", registry=registry).inc(total)
        return dataclasses.replace(Reading.parse(generate_latest(registry).decode()), at_s=at_s)

    assert Interval(reading(10, 0), reading(30, 4)).rate("vl2_things_total") == 5
    assert Interval(reading(10, 0), reading(2, 4)).rate("vl2_things_total") == 0.5
    assert Interval(None, reading(30, 4)).rate("vl2_things_total") is None
    assert Interval(None, reading(30, 4)).rate("vl2_others_total") is None


@given(st.lists(st.floats(0, 30), min_size=1), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    bounds = (0.5, 1, 2, 5, 10, 60)
    registry = CollectorRegistry()
    histogram = Histogram("t_seconds", "…", registry=registry, buckets=bounds)
    for value in values:
        histogram.observe(value)
    found = Interval(None, Reading.parse(generate_latest(registry).decode())).quantile(q, "t_seconds")
    true = sorted(values)[max(0, -(-len(values) * int(q * 100) // 100) - 1)]
    low = max((bound for bound in (0, *bounds) if bound < true), default=0)
    high = min(bound for bound in bounds if bound >= true)
    assert found is not None and low <= found <= high


def test_a_server_without_any_numbers_yet_is_shown_with_dashes() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(screen(Interval(None, Reading.parse("vl2_ready 0\n")), "http://x"))
    text = console.export_text()
    assert "not ready" in text and "–" in text
