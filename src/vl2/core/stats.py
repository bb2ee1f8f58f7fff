"""What the engine counts, as plain numbers; the server turns them into metrics and the page shows them."""

from __future__ import annotations

from dataclasses import dataclass


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
