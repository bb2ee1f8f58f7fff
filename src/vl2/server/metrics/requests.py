"""The server's own measurements: requests, their times and tokens."""

from __future__ import annotations

import os
import platform
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from vl2 import __version__
from vl2.core.errors import RateLimited
from vl2.core.stats import ModelInfo, resident_bytes
from vl2.core.types import Usage
from vl2.server.errors import CLIENT_GONE
from vl2.server.metrics import catalogue as c
from vl2.server.metrics.tokens import GatheredHistogram, TokenTally
from vl2.server.processes import SHARED_FOLDER

disable_created_metrics()  # a second series for each counter, of no use to Prometheus

SERVER_PROCESS = "server"


class Metrics:
    """One registry for one app: tests may have many in a process."""

    def __init__(self, model: str) -> None:
        """`model`: the name that clients use; a label of everything."""
        self.registry, self.model = CollectorRegistry(), model
        self._requests = self._counter(c.REQUESTS)
        for route in c.ASKING_ROUTES:
            for status, outcome in c.EXPECTED:
                self._requests.labels(model, route, status, outcome)
        self.in_flight = self._gauge(c.IN_FLIGHT, "livesum").labels(model)
        self._request_s = self._histogram(c.REQUEST_SECONDS)
        self.first_token_s, self._intake_s, self._queue_s, self._vision_s = (
            self._histogram(metric).labels(model)
            for metric in (c.FIRST_TOKEN_SECONDS, c.INTAKE_SECONDS, c.QUEUE_SECONDS, c.VISION_SECONDS)
        )
        self._prefill_s = self._histogram(c.PREFILL_SECONDS).labels(model)
        self._decode_s = self._histogram(c.DECODE_SECONDS).labels(model)
        prompt_tokens = self._counter(c.PROMPT_TOKENS)
        self._text_tokens, self._image_tokens = (prompt_tokens.labels(model, kind) for kind in ("text", "image"))
        self._cached_tokens = self._counter(c.CACHED_TOKENS).labels(model)
        between_s = self._histogram(c.INTER_TOKEN_SECONDS).labels(model)
        self.tokens = TokenTally(self._counter(c.GENERATED_TOKENS).labels(model), between_s)
        self.result_cache_hits = self._counter(c.RESULT_CACHE_HITS).labels(model)
        self._ready = self._gauge(c.READY).labels(model)
        self._resident_bytes = self._gauge(c.RESIDENT_BYTES)
        self._build_info = self._gauge(c.BUILD_INFO)

    def count_request(self, route: str, status: int, error_code: str | None, seconds: float) -> None:
        self._requests.labels(self.model, route, str(status), outcome_of(status, error_code)).inc()
        self._request_s.labels(self.model, route).observe(seconds)
        self.tokens.pass_on()

    def count_answer(self, usage: Usage, first_token_s: float | None) -> None:
        """A complete answer; `first_token_s`: from its request's arrival."""
        self._text_tokens.inc(usage.prompt_tokens - usage.image_tokens)
        self._image_tokens.inc(usage.image_tokens)
        self._cached_tokens.inc(usage.cached_tokens)
        timing = usage.timing
        if timing is None:
            return
        self._queue_s.observe(timing.queue_s)
        self._prefill_s.observe(timing.prefill_s)
        self._decode_s.observe(timing.decode_s)
        if usage.image_tokens:
            self._vision_s.observe(timing.vision_s)
        if first_token_s is not None:
            self._intake_s.observe(max(0.0, first_token_s - timing.queue_s - timing.vision_s - timing.prefill_s))

    def exposition(self) -> bytes:
        """As text; of all front-ends together, where there are several."""
        self.tokens.pass_on()
        if SHARED_FOLDER not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)

    def describe_process(self, name: str = SERVER_PROCESS) -> None:
        self._resident_bytes.labels(self.model, name).set(resident_bytes())

    def describe_server(self, *, is_ready: bool, info: ModelInfo | None) -> None:
        """What is as it is when it is asked for."""
        self._ready.set(is_ready)
        self.describe_process()
        if info is not None:
            self._build_info.labels(self.model, __version__, platform.python_version(), info.device, info.dtype).set(1)

    def _counter(self, metric: c.Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.all_labels, registry=self.registry)

    def _gauge(self, metric: c.Metric, together: Literal["livesum", "livemax"] = "livemax") -> Gauge:
        """`together`: what several front-ends' values come to."""
        return Gauge(metric.name, metric.help, metric.all_labels, registry=self.registry, multiprocess_mode=together)

    def _histogram(self, metric: c.Metric) -> GatheredHistogram:
        assert metric.buckets is not None
        return GatheredHistogram(
            metric.name, metric.help, metric.all_labels, buckets=metric.buckets, registry=self.registry
        )


def forget_process(pid: int) -> None:
    """A front-end is gone: its gauges too, while what it counted stays."""
    mark_process_dead(pid)


def outcome_of(status: int, error_code: str | None) -> str:
    """One of `catalogue.OUTCOMES`."""
    if status < 400:
        return "ok"
    if error_code == RateLimited.code:
        return "limited"
    known = {CLIENT_GONE: "cancelled", 429: "refused", 503: "refused", 504: "expired"}
    return known.get(status, "invalid" if status < 500 else "failed")
