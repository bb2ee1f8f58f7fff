"""The engines' numbers as they are at the scrape, in the form that prometheus_client wants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family

from vl2.core.stats import THROTTLE_REASONS, Distribution, EngineStats, GPUReading, ReplicaStats
from vl2.server.metrics import catalogue as c
from vl2.server.metrics.catalogue import Metric


class EngineCollector:
    """One snapshot. A replica that is down, or that does not answer, shows what is known of it and no zeros."""

    def __init__(self, model: str, replicas: Sequence[ReplicaStats]) -> None:
        self._model, self._replicas = model, replicas
        self._families: dict[str, Family] = {}

    def collect(self) -> Iterator[Family]:
        for metric in (*c.ENGINE_METRICS, *c.GPU_METRICS):
            self._families[metric.name] = _family(metric)
        for idx, replica in enumerate(self._replicas):
            self._add(c.ENGINE_READY, idx, float(replica.is_ready))
            if replica.stats is not None:
                self._add(c.ENGINE_RESTARTS, idx, replica.stats.restarts_total)
            if replica.is_ready and replica.stats is not None:
                self._add_stats(idx, replica.stats)
            if replica.gpu is not None:
                self._add_reading(idx, replica.gpu)
        yield from (family for family in self._families.values() if family.samples)

    def _add(self, metric: Metric, idx: int, value: float | None, *labels: str) -> None:
        if value is not None:
            family: Any = self._families[metric.name]
            family.add_metric([self._model, str(idx), *labels], float(value))

    def _add_distribution(self, metric: Metric, idx: int, values: Distribution | None, *labels: str) -> None:
        if values is None:
            return
        bounds = [*map(str, map(float, values.bounds)), "+Inf"]
        family: Any = self._families[metric.name]
        buckets = list(zip(bounds, accumulate(values.counts), strict=True))
        family.add_metric([self._model, str(idx), *labels], buckets, values.total)

    def _add_stats(self, idx: int, stats: EngineStats) -> None:
        for field, metric in c.ENGINE_NUMBERS.items():
            self._add(metric, idx, getattr(stats, field))
        self._add_distribution(c.STEP_SEQUENCES, idx, stats.step_sequences)
        for kind, seconds in stats.step_seconds.items():
            self._add_distribution(c.STEP_SECONDS, idx, seconds, kind)
        if stats.memory is not None:
            memory = stats.memory
            self._add(c.GPU_ALLOCATED, idx, memory.allocated_bytes)
            self._add(c.GPU_RESERVED, idx, memory.reserved_bytes)
            self._add(c.GPU_FRAGMENTATION, idx, memory.fragmented_bytes / max(1, memory.reserved_bytes))

    def _add_reading(self, idx: int, gpu: GPUReading) -> None:
        for field, metric in c.GPU_READINGS.items():
            self._add(metric, idx, getattr(gpu, field))
        if gpu.throttle_reasons is not None:
            for reason in THROTTLE_REASONS:
                self._add(c.GPU_THROTTLED, idx, float(reason in gpu.throttle_reasons), reason)


def _family(metric: Metric) -> Family:
    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
    return kinds[metric.kind](metric.name, metric.help, labels=metric.all_labels)
