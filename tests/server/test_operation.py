"""Probes, metrics, and the app's life: how the model starts and stops with it."""

from __future__ import annotations

import asyncio
import dataclasses

import httpx
from prometheus_client.parser import text_string_to_metric_families

from fakes import FakeModel
from server.bodies import Connect, chat
from vl2.core.config import ServerConfig
from vl2.core.errors import SetupError
from vl2.core.stats import EngineStats, ReplicaStats
from vl2.server.app import create_app
from vl2.server.metrics import ENGINE_METRICS


def samples(response: httpx.Response) -> dict[str, float]:
    """`name{label}` → value."""
    found = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            found[sample.name + "".join(f"{{{value}}}" for value in sample.labels.values())] = sample.value
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


async def test_requests_tokens_and_times_are_counted(connect: Connect) -> None:
    client = connect()
    await client.post("/v1/chat/completions", json=chat())
    await client.post("/v1/chat/completions", json=chat(n=0))
    await client.get("/nothing/at/all")
    found = samples(await client.get("/metrics"))
    assert found["vl2_requests_total{/v1/chat/completions}{200}"] == 1
    assert found["vl2_requests_total{/v1/chat/completions}{400}"] == 1
    assert found["vl2_requests_total{other}{404}"] == 1
    assert found["vl2_requests_in_flight"] == 1  # the scrape itself
    assert found["vl2_time_to_first_token_seconds_count"] == 1
    assert found["vl2_inter_token_seconds_count"] == 3
    assert found["vl2_prompt_tokens_total"] == 10
    assert found["vl2_image_tokens_total"] == 4
    assert found["vl2_generation_tokens_total"] == 4


async def test_the_engine_s_counters_are_read_at_the_scrape(connect: Connect) -> None:
    found = samples(await connect().get("/metrics"))
    assert found["vl2_engine_running_sequences{0}"] == 1
    assert found["vl2_engine_steps_total{0}"] == 7
    assert found["vl2_engine_ready{0}"] == 1


async def test_each_replica_has_its_own_counters_and_one_that_is_down_has_none(connect: Connect) -> None:
    class TwoReplicas(FakeModel):
        async def replica_stats(self) -> list[ReplicaStats]:
            return [ReplicaStats(False, EngineStats()), ReplicaStats(True, EngineStats(steps_total=3))]

    found = samples(await connect(TwoReplicas()).get("/metrics"))
    assert (found["vl2_engine_ready{0}"], found["vl2_engine_ready{1}"]) == (0, 1)
    assert "vl2_engine_steps_total{0}" not in found and found["vl2_engine_steps_total{1}"] == 3


def test_every_counter_of_the_engine_has_a_metric() -> None:
    assert set(ENGINE_METRICS) == {field.name for field in dataclasses.fields(EngineStats)}


async def test_metrics_are_there_without_an_engine_and_when_it_does_not_answer(connect: Connect) -> None:
    class Broken(FakeModel):
        async def replica_stats(self) -> list[ReplicaStats]:
            raise OSError("gone")

    for model in (FakeModel(is_ready=False), Broken()):
        found = samples(await connect(model).get("/metrics"))
        assert "vl2_requests_in_flight" in found
        assert "vl2_engine_steps_total{0}" not in found and found.get("vl2_engine_ready{0}", 0) == 0


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
