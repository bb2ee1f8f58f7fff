"""What Prometheus reads at /metrics: the server's own measurements, and the engine's counters as they are now."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from vl2.core.interface import ChatModel
from vl2.core.stats import ReplicaStats
from vl2.core.types import Delta, Usage

logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATS_TIMEOUT_S = 2.5  # a scrape must not wait for an engine that hangs; a little more than the client's own 2 s
FIRST_TOKEN_BUCKETS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1, 2, 5, 10, 30, 60)
INTER_TOKEN_BUCKETS_S = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 5)
REQUEST_BUCKETS_S = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)

ENGINE_METRICS: dict[str, tuple[str, str]] = {
    "num_running": ("running_sequences", "Answers being generated."),
    "num_waiting": ("waiting_sequences", "Answers waiting in the queue."),
    "num_pages_used": ("kv_pages_used", "Pages of the KV cache in use."),
    "num_pages": ("kv_pages", "Pages of the KV cache."),
    "steps_total": ("steps", "Steps run."),
    "step_seconds_total": ("step_seconds", "Time spent in steps."),
    "prompt_tokens_total": ("prompt_tokens", "Prompt tokens taken in, cached ones too."),
    "cached_tokens_total": ("cached_tokens", "Prompt tokens that were not computed again."),
    "generated_tokens_total": ("generated_tokens", "Tokens generated."),
    "tiles_encoded_total": ("tiles_encoded", "Picture tiles run through the vision tower."),
    "tile_hits_total": ("tile_hits", "Picture tiles found in the image cache."),
    "vision_seconds_total": ("vision_seconds", "Time spent in the vision tower."),
    "preemptions_total": ("preemptions", "Answers put back to the queue for want of pages."),
    "restarts_total": ("restarts", "Times the engine process was started anew."),
}
"""Field of EngineStats → name below vl2_engine_, help."""


class Metrics:
    """One registry for one app: tests may have many in a process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("vl2_requests", "Finished requests.", ["route", "status"], registry=registry)
        self.in_flight = Gauge("vl2_requests_in_flight", "Requests being answered.", registry=registry)
        self.request_s = Histogram(
            "vl2_request_seconds", "Whole request.", ["route"], buckets=REQUEST_BUCKETS_S, registry=registry
        )
        self.first_token_s = Histogram(
            "vl2_time_to_first_token_seconds",
            "From the request's arrival to its first token.",
            buckets=FIRST_TOKEN_BUCKETS_S,
            registry=registry,
        )
        self.inter_token_s = Histogram(
            "vl2_inter_token_seconds",
            "Between two tokens of one answer.",
            buckets=INTER_TOKEN_BUCKETS_S,
            registry=registry,
        )
        self.prompt_tokens = Counter("vl2_prompt_tokens", "Prompt tokens of finished answers.", registry=registry)
        self.image_tokens = Counter("vl2_image_tokens", "Those of them that were pictures.", registry=registry)
        self.generation_tokens = Counter("vl2_generation_tokens", "Tokens answered.", registry=registry)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        self.requests.labels(route, str(status)).inc()
        self.request_s.labels(route).observe(seconds)

    def count_usage(self, usage: Usage) -> None:
        self.prompt_tokens.inc(usage.prompt_tokens)
        self.image_tokens.inc(usage.image_tokens)
        self.generation_tokens.inc(usage.completion_tokens)


class TokenClock:
    """Measures one request's deltas as they come by."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last_s: dict[int, float] = {}  # choice → when its last token came

    def observe(self, delta: Delta) -> None:
        if not delta.token_ids:
            return
        now_s = time.monotonic()
        if (last_s := self._last_s.get(delta.choice_idx)) is not None:
            gap_s = (now_s - last_s) / len(delta.token_ids)
            for _ in delta.token_ids:
                self._metrics.inter_token_s.observe(gap_s)
        self._last_s[delta.choice_idx] = now_s


class EngineCollector:
    """One snapshot of the engines, labelled by replica, in the form that prometheus_client wants."""

    def __init__(self, replicas: list[ReplicaStats]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily("vl2_engine_ready", "1 while the engine takes requests.", labels=["replica"])
        for idx, replica in enumerate(self._replicas):
            ready.add_metric([str(idx)], float(replica.is_ready))
        yield ready
        for field, (name, help_text) in ENGINE_METRICS.items():
            kind = CounterMetricFamily if field.endswith("_total") else GaugeMetricFamily
            family = kind(f"vl2_engine_{name}", help_text, labels=["replica"])
            for idx, replica in enumerate(self._replicas):
                if replica.is_ready and replica.stats is not None:  # else zeros would stand for what nobody knows
                    family.add_metric([str(idx)], getattr(replica.stats, field))
            yield family


def metrics_routes(llm: ChatModel, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/metrics", summary="Measurements for Prometheus", response_class=PlainTextResponse)
    async def read_metrics() -> Response:
        snapshot = CollectorRegistry()
        snapshot.register(EngineCollector(await read_stats(llm)))
        return Response(generate_latest(metrics.registry) + generate_latest(snapshot), media_type=CONTENT_TYPE)

    return router


async def read_stats(llm: ChatModel) -> list[ReplicaStats]:
    """Empty when they do not answer in time."""
    try:
        return await asyncio.wait_for(llm.replica_stats(), STATS_TIMEOUT_S)
    except Exception:
        logger.exception("the engines did not give their statistics")
        return []
