"""Probes, metrics, and the app's life: how the model starts and stops with it."""

from __future__ import annotations

import asyncio
import dataclasses
import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fakes import FakeModel, answer
from server.bodies import Connect, chat
from vl2.core.config import ServerConfig
from vl2.core.errors import EngineError, SetupError
from vl2.core.stats import DeviceMemory, Distribution, EngineStats, GPUReading, ReplicaStats
from vl2.core.types import Timing, Usage
from vl2.server.app import create_app
from vl2.server.metrics.catalogue import ASKING_ROUTES, CATALOGUE, ENGINE_NUMBERS, GPU_READINGS, OUTCOMES, Metric
from vl2.server.metrics.requests import outcome_of


def samples(response: httpx.Response) -> dict[str, float]:
    """`name{label}` → value; the label `model`, which all have, is left out."""
    found = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            labels = [value for name, value in sample.labels.items() if name != "model"]
            found[sample.name + "".join(f"{{{value}}}" for value in labels)] = sample.value
    return found


async def test_readiness_follows_the_model_and_liveness_does_not(connect: Connect) -> None:
    model = FakeModel(is_ready=False)
    client = connect(model)
    assert (await client.get("/health/ready")).status_code == 503
    assert (await client.get("/health")).status_code == 503
    assert (await client.get("/health/live")).status_code == 200
    model.is_ready = True
    assert (await client.get("/health/ready")).status_code == 200
    assert (await client.get("/health")).json() == {"status": "ready"}


TIMED = Usage(
    10, 4, image_tokens=4, cached_tokens=2, timing=Timing(queue_s=0.004, vision_s=0.03, prefill_s=0.2, decode_s=1)
)


async def test_requests_tokens_and_times_are_counted(connect: Connect) -> None:
    client = connect(FakeModel(answer("A red square.", usage=TIMED)))
    await client.post("/v1/chat/completions", json=chat())
    await client.post("/v1/chat/completions", json=chat(n=0))
    await client.get("/nothing/at/all")
    found = samples(await client.get("/metrics"))
    assert found["vl2_requests_total{ok}{/v1/chat/completions}{200}"] == 1
    assert found["vl2_requests_total{invalid}{/v1/chat/completions}{400}"] == 1
    assert found["vl2_requests_total{invalid}{other}{404}"] == 1
    assert found["vl2_requests_in_flight"] == 1  # the scrape itself
    assert found["vl2_time_to_first_token_seconds_count"] == 1
    assert found["vl2_inter_token_seconds_count"] == 3
    assert found["vl2_prompt_tokens_total{text}"] == 6
    assert found["vl2_prompt_tokens_total{image}"] == 4
    assert found["vl2_cached_tokens_total"] == 2
    assert found["vl2_generated_tokens_total"] == 4
    for name, seconds in {"queue": 0.004, "vision": 0.03, "prefill": 0.2, "decode": 1}.items():
        assert found[f"vl2_{name}_seconds_sum"] == seconds
    assert found["vl2_intake_seconds_count"] == 1
    assert found["vl2_ready"] == 1 and found["vl2_server_resident_memory_bytes{server}"] > 10**7


async def test_a_text_alone_has_no_vision_time_and_an_answer_that_breaks_only_its_tokens(connect: Connect) -> None:
    plain = dataclasses.replace(TIMED, image_tokens=0)
    broken = [*answer("A red square.")[:2], EngineError("it broke")]
    scripts = [answer("A red square.", usage=plain), broken]
    client = connect(FakeModel(lambda messages, params: scripts.pop(0)))
    for _ in range(2):
        await client.post("/v1/chat/completions", json=chat())
    found = samples(await client.get("/metrics"))
    assert found["vl2_vision_seconds_count"] == 0 and found["vl2_decode_seconds_count"] == 1
    assert found["vl2_generated_tokens_total"] == 6 and found["vl2_prompt_tokens_total{text}"] == 10
    assert found["vl2_requests_total{failed}{/v1/chat/completions}{500}"] == 1


@pytest.mark.parametrize(
    ("status", "code", "outcome"),
    [
        (200, None, "ok"),
        (404, "not_found", "invalid"),
        (429, "rate_limit_exceeded", "limited"),
        (429, "overloaded", "refused"),
        (503, "engine_not_ready", "refused"),
        (504, "deadline_exceeded", "expired"),
        (499, "client_gone", "cancelled"),
        (500, "engine_error", "failed"),
    ],
)
def test_an_outcome_tells_whose_fault_it_was(status: int, code: str | None, outcome: str) -> None:
    assert outcome_of(status, code) == outcome and outcome in OUTCOMES


async def test_answers_and_failures_are_there_from_the_start_on_routes_that_exist(connect: Connect) -> None:
    client = connect()
    found = samples(await client.get("/metrics"))
    for route in ASKING_ROUTES:
        assert found[f"vl2_requests_total{{failed}}{{{route}}}{{500}}"] == 0
        assert (await client.post(route, json={})).status_code == 400


STATS = EngineStats(
    num_running=1,
    generated_tokens_total=7,
    step_sequences=Distribution((1.0, 2.0), (3, 1, 2), 30.0),
    step_seconds={"decode": Distribution((0.1,), (5, 1), 0.9)},
    memory=DeviceMemory(allocated_bytes=60, reserved_bytes=80, fragmented_bytes=8),
)
READING = GPUReading(0.9, 70, 100, 640.0, 71.0, ("thermal",))


def of_replicas(*replicas: ReplicaStats) -> FakeModel:
    class Replicas(FakeModel):
        async def replica_stats(self) -> list[ReplicaStats]:
            return list(replicas)

    return Replicas()


async def test_the_engine_s_counters_are_read_at_the_scrape(connect: Connect) -> None:
    found = samples(await connect(of_replicas(ReplicaStats(True, STATS))).get("/metrics"))
    assert found["vl2_engine_running_sequences{0}"] == 1
    assert found["vl2_engine_generated_tokens_total{0}"] == 7
    assert found["vl2_engine_ready{0}"] == 1
    assert [found[f"vl2_engine_step_sequences_bucket{{{le}}}{{0}}"] for le in ("1.0", "2.0", "+Inf")] == [3, 4, 6]
    assert found["vl2_engine_step_sequences_sum{0}"] == 30 and found["vl2_engine_step_sequences_count{0}"] == 6
    assert found["vl2_engine_step_seconds_bucket{decode}{0.1}{0}"] == 5
    assert not any(name.startswith("vl2_gpu_utilization") for name in found)


async def test_a_gpu_is_told_in_base_units(connect: Connect) -> None:
    found = samples(await connect(of_replicas(ReplicaStats(True, STATS, READING))).get("/metrics"))
    gpu = {name.removeprefix("vl2_gpu_"): value for name, value in found.items() if name.startswith("vl2_gpu_")}
    assert gpu == {
        "utilization_ratio{0}": 0.9,
        "memory_used_bytes{0}": 70,
        "memory_total_bytes{0}": 100,
        "power_watts{0}": 640,
        "temperature_celsius{0}": 71,
        "throttled{power_cap}{0}": 0,
        "throttled{thermal}{0}": 1,
        "throttled{hardware}{0}": 0,
        "memory_allocated_bytes{0}": 60,
        "memory_reserved_bytes{0}": 80,
        "memory_fragmentation_ratio{0}": 0.1,
    }


async def test_each_replica_has_its_own_counters_and_one_that_is_down_has_none(connect: Connect) -> None:
    model = of_replicas(ReplicaStats(False, EngineStats(restarts_total=2)), ReplicaStats(True, STATS))
    found = samples(await connect(model).get("/metrics"))
    assert (found["vl2_engine_ready{0}"], found["vl2_engine_ready{1}"]) == (0, 1)
    assert found["vl2_engine_restarts_total{0}"] == 2
    assert "vl2_engine_generated_tokens_total{0}" not in found and found["vl2_engine_generated_tokens_total{1}"] == 7


def test_every_number_of_the_engine_has_a_metric() -> None:
    of_their_own = {"restarts_total", "step_sequences", "step_seconds", "memory"}
    assert set(ENGINE_NUMBERS) == {field.name for field in dataclasses.fields(EngineStats)} - of_their_own
    assert set(GPU_READINGS) == {field.name for field in dataclasses.fields(GPUReading)} - {"throttle_reasons"}


@pytest.mark.parametrize("metric", [m for group in CATALOGUE.values() for m in group], ids=lambda m: m.name)
def test_names_and_help_follow_prometheus_practice(metric: Metric) -> None:
    """As `promtool check metrics` has it; it reads what the real server says in tests/deploy/monitoring."""
    assert re.fullmatch("vl2(_[a-z]+)+", metric.name) and metric.help.endswith(".")
    assert not re.search("milli|micro|percent|_ms$|_kb$", metric.name)
    if metric.buckets is not None and metric.name.endswith("_seconds"):
        assert metric.buckets[0] <= 0.001 and metric.buckets[-1] == 60, "1 ms to 60 s"


async def test_metrics_are_there_without_an_engine_and_when_it_does_not_answer(connect: Connect) -> None:
    class Broken(FakeModel):
        async def replica_stats(self) -> list[ReplicaStats]:
            raise OSError("gone")

    for model in (FakeModel(is_ready=False), Broken()):
        found = samples(await connect(model).get("/metrics"))
        assert "vl2_requests_in_flight" in found and found["vl2_ready"] == model.is_ready
        assert "vl2_engine_generated_tokens_total{0}" not in found and found.get("vl2_engine_ready{0}", 0) == 0


async def test_the_app_answers_while_it_loads_the_model_and_stops_it_at_the_end() -> None:
    loading = asyncio.Event()
    model = FakeModel(is_ready=False, loading=loading)
    app = create_app(model, ServerConfig())
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
    async with app.router.lifespan_context(app), client:
        assert (await client.get("/health/ready")).status_code == 503
        loading.set()
        while not model.is_ready:
            await asyncio.sleep(0)
        assert (await client.get("/health/ready")).status_code == 200
    assert model.is_stopped


async def test_a_model_that_runs_already_is_neither_started_nor_stopped() -> None:
    model = FakeModel(setup_error=SetupError("started twice"))
    app = create_app(model, ServerConfig())
    async with app.router.lifespan_context(app):
        pass
    assert not model.is_stopped


async def test_a_model_that_cannot_start_is_told_to_whoever_made_the_app() -> None:
    error, told = SetupError("no such checkpoint"), []
    app = create_app(FakeModel(is_ready=False, setup_error=error), ServerConfig(), on_setup_error=told.append)
    async with app.router.lifespan_context(app):
        while not told:
            await asyncio.sleep(0)
    assert told == [error]
