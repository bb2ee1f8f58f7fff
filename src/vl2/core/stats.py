"""What the engine counts, as plain numbers; the server turns them into metrics and the page shows them."""

from __future__ import annotations

import bisect
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

STEP_SECONDS_BOUNDS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0,
)  # fmt: skip
STEP_SEQUENCES_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts of the loaded model that other layers need."""

    max_context_tokens: int
    max_prompt_tiles: int
    vocab_size: int  # rows of the embedding: token ids are below
    device: str  # "cpu" or the GPU's name
    dtype: str
    num_parameters: int
    weights_bytes: int
    num_pages: int
    page_size_tokens: int
    fingerprint: str  # the reproducibility receipt: equal receipt, request and seed give equal bits (engine/receipt.py)
    gpu_uuid: str | None = None  # as the driver names it, without "GPU-"


@dataclass(frozen=True, slots=True)
class Distribution:
    """How many values lay at or below each bound and above the one before; one more count for those above all."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float  # the values' sum

    def plus(self, other: Distribution) -> Distribution:
        """Of the same bounds."""
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Distribution(self.bounds, counts, self.total + other.total)


class Tally:
    """A distribution in the making."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` rise."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def snapshot(self) -> Distribution:
        return Distribution(self.bounds, tuple(self.counts), self.total)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What PyTorch holds of a GPU's memory, bytes."""

    allocated_bytes: int  # in use by tensors
    reserved_bytes: int  # taken from the driver
    fragmented_bytes: int  # free, but in blocks that are partly in use: no larger tensor can have it


@dataclass(frozen=True, slots=True)
class GPUReading:
    """What the driver says about a GPU; None where the card does not tell."""

    utilization: float | None = None  # 0 … 1: share of the last interval in which a kernel ran
    memory_used_bytes: int | None = None  # by all processes
    memory_total_bytes: int | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    throttle_reasons: tuple[str, ...] | None = None  # why its clocks are lowered, of `THROTTLE_REASONS`


THROTTLE_REASONS = ("power_cap", "thermal", "hardware")


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. `num_*` are gauges; `*_total` and distributions only grow while the engine process lives."""

    num_running: int = 0
    num_waiting: int = 0
    num_pages_used: int = 0
    num_pages_cached: int = 0  # of prompts that are kept, held by nobody: free when they are needed
    num_pages: int = 0
    image_cache_used_bytes: int = 0
    image_cache_bytes: int = 0
    prompt_tokens_total: int = 0
    cached_tokens_total: int = 0
    generated_tokens_total: int = 0
    tiles_encoded_total: int = 0
    tile_hits_total: int = 0
    vision_seconds_total: float = 0.0
    preemptions_total: int = 0
    restarts_total: int = 0
    resident_bytes: int = 0  # of the engine's process
    step_sequences: Distribution | None = None  # answers computed for in a step
    step_seconds: dict[str, Distribution] = field(default_factory=dict)  # by kind of step: engine/meter.py
    memory: DeviceMemory | None = None  # None: no GPU


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """One engine among those that serve the model; its numbers are zeros while it is not ready."""

    is_ready: bool
    stats: EngineStats | None  # None: it did not answer in time
    gpu: GPUReading | None = None


def sum_stats(parts: Sequence[EngineStats]) -> EngineStats:
    """Gauges and totals of all together, the GPUs' memory left out."""
    together = EngineStats()
    for part in parts:
        sums = {name: _sum(getattr(together, name), getattr(part, name)) for name in _SUMMED}
        together = EngineStats(**sums)
    return together


_SUMMED = [field.name for field in fields(EngineStats) if field.name != "memory"]


def _sum(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return one or other
    if isinstance(one, dict):
        return {key: _sum(one.get(key), other.get(key)) for key in one | other}
    return one.plus(other) if isinstance(one, Distribution) else one + other


def available_bytes() -> int | None:
    """Memory that can be used without swapping, and no more than a container's limit leaves; None: nobody tells."""
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    if found is None:
        return None
    available = int(found[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available


def resident_bytes() -> int:
    """Memory of this process that lies in RAM; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
