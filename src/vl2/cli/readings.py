"""A server's /metrics as numbers: sums, rates and quantiles between two readings."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

Labels = dict[str, str]


@dataclass(frozen=True)
class Reading:
    """One scrape: (name, labels, value) of every sample."""

    samples: dict[str, list[tuple[Labels, float]]]
    at_s: float = field(default_factory=time.monotonic)

    @classmethod
    def parse(cls, text: str) -> Reading:
        """Raises: ValueError when it is no Prometheus text."""
        samples: dict[str, list[tuple[Labels, float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((sample.labels, sample.value))
        return cls(samples)

    def matching(self, name: str, labels: Labels) -> Iterator[tuple[Labels, float]]:
        for own, value in self.samples.get(name, ()):
            if labels.items() <= own.items():
                yield own, value

    def sum(self, name: str, **labels: str) -> float | None:
        """None where there is no such sample."""
        values = [value for _, value in self.matching(name, labels)]
        return sum(values) if values else None

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Sums for each value of a label."""
        sums: dict[str, float] = {}
        for own, value in self.matching(name, labels):
            sums[own[label]] = sums.get(own[label], 0.0) + value
        return sums


@dataclass(frozen=True)
class Interval:
    """What happened between two readings. With no earlier one: since the server's start, and without rates."""

    before: Reading | None
    now: Reading

    def rise(self, name: str, **labels: str) -> float | None:
        """Of a counter; one that fell has begun anew."""
        now = self.now.sum(name, **labels)
        before = self.before.sum(name, **labels) if self.before is not None else None
        if now is None or before is None or now < before:
            return now
        return now - before

    def rate(self, name: str, **labels: str) -> float | None:
        """A second."""
        rise = self.rise(name, **labels)
        if self.before is None or rise is None:
            return None
        return rise / max(self.now.at_s - self.before.at_s, 1e-9)

    def quantile(self, q: float, name: str, **labels: str) -> float | None:
        """Of a histogram, as Prometheus' histogram_quantile has it; None when nothing was observed."""
        bounds = sorted(self.now.by("le", f"{name}_bucket", **labels), key=_bound)
        counts = [self.rise(f"{name}_bucket", le=bound, **labels) or 0.0 for bound in bounds]
        if not counts or not counts[-1]:
            return None
        rank, low, below = q * counts[-1], 0.0, 0.0
        for bound, count in zip(bounds, counts, strict=True):
            if count >= rank and count > below:
                high = _bound(bound)
                return low if math.isinf(high) else low + (high - low) * (rank - below) / (count - below)
            low, below = _bound(bound), count
        return low


def _bound(text: str) -> float:
    return math.inf if text == "+Inf" else float(text)
