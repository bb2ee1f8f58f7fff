"""A real Prometheus over two real servers under load, one with two engines, and over one that says it has a GPU."""

from __future__ import annotations

import asyncio
import bisect
import json
import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import yaml

from fakes import INFO, FakeModel
from tests.deploy.cluster import need
from tests.deploy.monitoring.prometheus import HOW, MONITORING, Prometheus, scraping
from tests.deploy.monitoring.questions import CHAT, Seen, load, plain
from tests.e2e.server_process import LIMIT_S, Server, serving, standing_still, wait_until
from tests.live_server import answering
from vl2.core.config import ServerConfig
from vl2.core.stats import DeviceMemory, EngineStats, GPUReading, ReplicaStats
from vl2.server.app import create_app
from vl2.server.metrics.catalogue import CATALOGUE, LATENCY_BUCKETS_S

FLAGS = ("--device", "cpu", "--dtype", "float32", "--log-level", "warning", "--max-sequences", "4")
NUM_REQUESTS = 160
BOARD = json.loads((MONITORING / "dashboard.json").read_text())


class WithGPU(FakeModel):
    """As an engine on a GPU: readings that this machine has no card for."""

    async def replica_stats(self) -> list[ReplicaStats]:
        memory = DeviceMemory(60 * 2**30, 70 * 2**30, 7 * 2**30)
        reading = GPUReading(0.9, 72 * 2**30, 80 * 2**30, 640.0, 71.0, ("power_cap",))
        return [ReplicaStats(True, EngineStats(num_pages=10, memory=memory), reading)]


@pytest.fixture(scope="module")
def gpu_server() -> Iterator[str]:
    """host:port of our app on a thread of this process."""
    model = WithGPU(name="with-gpu")
    model.info = replace(INFO, device="NVIDIA H100 80GB HBM3", dtype="bfloat16")
    with answering(create_app(model, ServerConfig())) as address:
        yield address.removeprefix("http://")


@dataclass(frozen=True)
class Scene:
    servers: list[Server]
    prometheus: Prometheus
    seen: Seen
    instances: str  # of the two real servers, as an expression for a label
    loaded_s: float = 0.0  # when the load had just been scraped: a rate of the last minute is of it

    @property
    def num_targets(self) -> int:
        return len(self.servers) + 1

    def sum(self, metric: str, **labels: str) -> float:
        """Over both servers."""
        selector = ", ".join(f'{name}="{value}"' for name, value in labels.items())
        return self.prometheus.value(f'sum({metric}{{instance=~"{self.instances}", {selector}}})')

    def quantile(self, q: float, metric: str, **labels: str) -> float:
        selector = ", ".join(f'{name}="{value}"' for name, value in labels.items())
        buckets = f'{metric}_bucket{{instance=~"{self.instances}", {selector}}}'
        return self.prometheus.value(f"histogram_quantile({q}, sum by (le) ({buckets}))")


@pytest.fixture(scope="module")
def scene(gpu_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """After the load; every number has been scraped since."""
    need("prometheus", HOW)
    fast = [*FLAGS, "--no-deterministic"]  # else no step on a CPU is mixed
    with serving("nano", *fast, "--replicas", "2") as two, serving("nano", *fast) as one:
        servers = [two, one]
        hosts = [server.url.removeprefix("http://") for server in servers]
        with scraping([*hosts, gpu_server], tmp_path_factory.mktemp("prometheus")) as prometheus:
            seen = asyncio.run(load([s.url for s in servers], num_requests=NUM_REQUESTS, num_clients=8))
            prometheus.wait_for_scrape(3)
            yield Scene(servers, prometheus, seen, "|".join(hosts), time.time())


def test_every_metric_of_the_reference_is_there(scene: Scene) -> None:
    names = {series["metric"]["__name__"] for series in scene.prometheus.query('{__name__=~"vl2_.+"}')}
    for group in CATALOGUE.values():
        for metric in group:
            exposed = metric.name + "_bucket" if metric.kind == "histogram" else metric.name
            assert exposed in names
            [kind] = httpx.get(
                scene.prometheus.url + "/api/v1/metadata", params={"metric": metric.name}
            ).json()["data"][metric.name]  # fmt: skip
            assert (kind["type"], kind["help"]) == (metric.kind, metric.help)


def test_each_replica_of_each_server_is_a_series_of_its_own(scene: Scene) -> None:
    found = scene.prometheus.query(f'vl2_engine_generated_tokens_total{{instance=~"{scene.instances}"}} > 0')
    replicas = [(series["metric"]["instance"], series["metric"]["replica"]) for series in found]
    assert len(set(replicas)) == 3, "two engines of the one, one of the other, and all have worked"


def test_promtool_finds_nothing_to_say_about_what_a_server_shows(scene: Scene) -> None:
    for server in scene.servers:
        text = httpx.get(server.url + "/metrics").text
        ran = subprocess.run([need("promtool", HOW), "check", "metrics"], input=text, capture_output=True, text=True)
        assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


def test_counters_are_exactly_what_the_clients_saw(scene: Scene) -> None:
    seen = scene.seen
    assert seen.statuses[200] + seen.statuses[400] == NUM_REQUESTS and seen.statuses[400] > 0
    assert seen.image_tokens > 0 and seen.cached_tokens > 0
    for outcome, status in {"ok": 200, "invalid": 400}.items():
        assert scene.sum("vl2_requests_total", route=CHAT, outcome=outcome) == seen.statuses[status]
    assert scene.sum("vl2_prompt_tokens_total", kind="image") == seen.image_tokens
    assert scene.sum("vl2_prompt_tokens_total", kind="text") == seen.prompt_tokens - seen.image_tokens
    assert scene.sum("vl2_cached_tokens_total") == seen.cached_tokens
    assert scene.sum("vl2_generated_tokens_total") == seen.generated_tokens
    assert scene.sum("vl2_engine_generated_tokens_total") == seen.generated_tokens
    assert scene.sum("vl2_engine_prompt_tokens_total") == seen.prompt_tokens
    for name in ("time_to_first_token", "queue", "prefill", "decode", "intake"):
        assert scene.sum(f"vl2_{name}_seconds_count") == seen.statuses[200]
    assert scene.sum("vl2_inter_token_seconds_count") == seen.generated_tokens - seen.statuses[200]
    assert scene.sum("vl2_requests_in_flight") == 2, "the scrapes themselves"


@pytest.mark.parametrize("q", [0.5, 0.99])
def test_quantiles_lie_between_those_of_the_engines_and_of_the_clients(scene: Scene, q: float) -> None:
    """A request takes a server longer than its engine, and its client longer than the server; on any machine."""
    found = {
        "first token": (scene.quantile(q, "vl2_time_to_first_token_seconds"), scene.seen.first_token_s),
        "request": (scene.quantile(q, "vl2_request_seconds", route=CHAT), scene.seen.request_s),
    }
    for name, (measured, own) in found.items():
        engines, clients = (sorted(times)[math.ceil(q * len(own)) - 1] for times in zip(*own, strict=True))
        low, mid, high = (bisect.bisect_left(LATENCY_BUCKETS_S, seconds) for seconds in (engines, measured, clients))
        assert low <= mid <= high, f"{name}: P{q * 100:g} {engines} s, {measured} s, {clients} s"


def expressions() -> list[tuple[str, str]]:
    """(panel, query) of the dashboard."""
    return [(panel["title"], target["expr"]) for panel in BOARD["panels"] for target in panel.get("targets", [])]


def filled(expr: str) -> str:
    """As Grafana does with All chosen."""
    return re.sub(r"\$(model|instance|replica)", ".*", expr).replace("$__rate_interval", "1m")


@pytest.mark.parametrize(("panel", "expr"), expressions())
def test_every_query_of_the_dashboard_returns_data(scene: Scene, panel: str, expr: str) -> None:
    found = scene.prometheus.query(filled(expr), scene.loaded_s)
    assert found and all(series["value"][1] != "NaN" for series in found)


def test_variables_list_what_there_is(scene: Scene) -> None:
    """label_values(selector, label), as Grafana asks for it."""
    values = {}
    for variable in BOARD["templating"]["list"]:
        query = variable["query"] if isinstance(variable["query"], str) else variable["query"]["query"]
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        if match is not None:
            found = scene.prometheus.query(f"count by ({match[2]}) ({filled(match[1])})")
            values[variable["name"]] = sorted(series["metric"][match[2]] for series in found)
    assert values["model"] == ["nano", "with-gpu"] and values["replica"] == ["0", "1"] and len(values["instance"]) == 3


def alert_expr(name: str) -> str:
    rules = yaml.safe_load((MONITORING / "rules.yml").read_text())
    return next(r["expr"] for group in rules["groups"] for r in group["rules"] if r.get("alert") == name)


def firing(scene: Scene, name: str) -> Sequence[dict]:
    """What the alert would fire for, its waiting time left out and its windows seconds instead of minutes."""
    expr = re.sub(r"\[(\d+)m\]", r"[\g<1>0s]", alert_expr(name))
    return [s for s in scene.prometheus.query(expr) if s["metric"].get("model") != "with-gpu"]


SILENT = (
    "VL2NoReadyReplica",
    "VL2ReplicaDown",
    "VL2EngineRestarts",
    "VL2ErrorBudgetBurnsFast",
    "VL2QueueGrows",
    "VL2PagesExhausted",
)


@pytest.mark.parametrize("name", SILENT)
def test_no_alert_on_healthy_servers(scene: Scene, name: str) -> None:
    assert not firing(scene, name)


def test_an_engine_that_is_killed_is_seen_and_so_are_the_answers_it_cost(scene: Scene) -> None:
    """The last tests: they break things."""
    server = scene.servers[1]

    async def cut() -> list[int]:
        """Twelve long questions, of which four can be under way at a time."""
        async with httpx.AsyncClient(base_url=server.url, timeout=LIMIT_S) as client:
            asking = [asyncio.ensure_future(client.post(CHAT, json=plain(idx, num_tokens=3000))) for idx in range(12)]
            while not re.search(r"waiting_sequences\{.*\} 8\.0", (await client.get("/metrics")).text):
                assert not any(task.done() for task in asking)
            os.kill(server.engine_pid, signal.SIGKILL)
            return [answer.status_code for answer in await asyncio.gather(*asking)]

    assert asyncio.run(cut()) == [500] * 12
    prometheus = scene.prometheus
    wait_until(lambda: bool(firing(scene, "VL2ErrorBudgetBurnsFast")))
    wait_until(lambda: prometheus.query("vl2_engine_restarts_total == 1") != [])
    assert not firing(scene, "VL2EngineRestarts"), "once is no series"
    assert not firing(scene, "VL2NoReadyReplica"), "the other server answers"
    wait_until(lambda: server.status("/health/ready") == 200)


def test_a_queue_that_is_filled_and_pages_that_run_out_are_seen(tmp_path: Path) -> None:
    flags = ("--max-context-tokens", "512", "--kv-cache-tokens", "1024", "--max-sequences", "16")
    faults = ("VL2QueueGrows", "VL2PagesExhausted", "VL2FirstTokenSlow")

    async def flood(url: str, scene: Scene) -> None:
        """At every scrape 16 more wait than at the last one, however fast they are answered meanwhile."""
        async with httpx.AsyncClient(timeout=LIMIT_S, limits=httpx.Limits(max_connections=None)) as client:
            asking: set[asyncio.Future] = set()
            for num_waiting in range(16, 400, 16):
                asking = {task for task in asking if not task.done()}
                for _ in range(num_waiting - len(asking)):
                    asking.add(asyncio.ensure_future(client.post(url + CHAT, json=plain(1, num_tokens=400))))
                await asyncio.to_thread(scene.prometheus.wait_for_scrape, 1)
                if all(firing(scene, name) for name in faults):
                    break
            else:
                raise AssertionError([name for name in faults if not firing(scene, name)])
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    with (
        serving("nano", *FLAGS[:-2], *flags) as server,
        scraping([server.url.removeprefix("http://")], tmp_path) as prometheus,
    ):
        scene = Scene([server], prometheus, Seen(), ".*")
        prometheus.wait_for_scrape(1)
        assert not any(firing(scene, name) for name in faults)
        asyncio.run(flood(server.url, scene))


def test_an_engine_that_dies_three_times_is_seen_each_time(tmp_path: Path) -> None:
    with serving("nano", *FLAGS) as server, scraping([server.url.removeprefix("http://")], tmp_path) as prometheus:
        scene = Scene([server], prometheus, Seen(), ".*")
        prometheus.wait_for_scrape(1)
        for num_deaths in (1, 2, 3):
            assert not firing(scene, "VL2EngineRestarts")
            dead = server.engine_pid
            os.kill(dead, signal.SIGKILL)
            wait_until(lambda dead=dead: server.engine_pids not in ([], [dead]))
            with standing_still(server.engine_pid):  # the next one, until its absence has been scraped
                for name in ("VL2NoReadyReplica", "VL2ReplicaDown"):
                    wait_until(lambda name=name: bool(firing(scene, name)))
            wait_until(lambda: not firing(scene, "VL2NoReadyReplica"))
            restarts = f"vl2_engine_restarts_total == {num_deaths}"
            wait_until(lambda expr=restarts: bool(prometheus.query(expr)))
        wait_until(lambda: bool(firing(scene, "VL2EngineRestarts")))
