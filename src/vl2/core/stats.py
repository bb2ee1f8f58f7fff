"""What the engine counts, as plain numbers; the server turns them into metrics and the page shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts of the loaded model that other layers need."""

    max_context_tokens: int
    max_prompt_tiles: int
    device: str  # "cpu" or the GPU's name
    dtype: str
    num_parameters: int
    weights_bytes: int
    num_pages: int
    page_size_tokens: int
    fingerprint: str  # the reproducibility receipt: equal receipt, request and seed give equal bits (engine/receipt.py)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. `num_*` are gauges; `*_total` only grow while the engine process lives."""

    num_running: int = 0
    num_waiting: int = 0
    num_pages_used: int = 0
    num_pages: int = 0
    steps_total: int = 0
    step_seconds_total: float = 0.0
    prompt_tokens_total: int = 0
    cached_tokens_total: int = 0
    generated_tokens_total: int = 0
    tiles_encoded_total: int = 0
    tile_hits_total: int = 0
    vision_seconds_total: float = 0.0
    preemptions_total: int = 0
    restarts_total: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """One engine among those that serve the model; its numbers are zeros while it is not ready."""

    is_ready: bool
    stats: EngineStats | None  # None: it did not answer in time


def sum_stats(parts: Sequence[EngineStats]) -> EngineStats:
    """Gauges and totals of all together."""
    names = [field.name for field in fields(EngineStats)]
    return EngineStats(**{name: sum(getattr(part, name) for part in parts) for name in names})
