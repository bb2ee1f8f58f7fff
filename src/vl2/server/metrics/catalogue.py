"""Every metric, once: name, labels, help and buckets. docs/reference/metrics.md is written from here.

Names as Prometheus has them: base units, `_total` for what only grows, ratios from 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from vl2.core.stats import STEP_SECONDS_BOUNDS, STEP_SEQUENCES_BOUNDS

LATENCY_BUCKETS_S = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0,
)  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """One family. All have the label `model` beside their own."""

    name: str  # as it is exposed
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] | None = None  # of a histogram

    @property
    def kind(self) -> str:
        if self.buckets is not None:
            return "histogram"
        return "counter" if self.name.endswith("_total") else "gauge"

    @property
    def all_labels(self) -> tuple[str, ...]:
        return ("model", *self.labels)


def _latency(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"vl2_{name}_seconds", help, labels, LATENCY_BUCKETS_S)


# ---- requests ----

REQUESTS = Metric(
    "vl2_requests_total",
    "Finished requests by route, status and outcome: ok; invalid (the client's fault, 4xx); limited (its key's quota); "
    "cancelled (the client left); refused (queue full or not ready); expired (its deadline passed); failed (ours).",
    ("route", "status", "outcome"),
)
ASKING_ROUTES = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/predict")
EXPECTED = (("200", "ok"), ("429", "refused"), ("500", "failed"), ("503", "refused"), ("504", "expired"))
"""There from the start, at 0, so that the first of them is a rise that `rate` sees."""
OUTCOMES = ("ok", "invalid", "limited", "cancelled", "refused", "expired", "failed")
IN_FLIGHT = Metric("vl2_requests_in_flight", "Requests being answered.")
REQUEST_SECONDS = _latency("request", "Whole request, from its first byte to the answer's last.", "route")
FIRST_TOKEN_SECONDS = _latency("time_to_first_token", "From the request's arrival to its first token.")
INTER_TOKEN_SECONDS = _latency("inter_token", "Between two tokens of one answer.")
INTAKE_SECONDS = _latency(
    "intake", "Part of the time to the first token outside the engine: reading the request, fetching and decoding."
)
QUEUE_SECONDS = _latency("queue", "From the engine's queue to the first step that computed for the answer.")
VISION_SECONDS = _latency("vision", "Of an answer with pictures: its share of the vision tower's work.")
PREFILL_SECONDS = _latency("prefill", "From the first step to the first token, without the vision tower.")
DECODE_SECONDS = _latency("decode", "From an answer's first token to its last.")

# ---- tokens ----

PROMPT_TOKENS = Metric("vl2_prompt_tokens_total", "Prompt tokens of complete answers: text, image.", ("kind",))
CACHED_TOKENS = Metric("vl2_cached_tokens_total", "Those of them that were found in the prefix cache.")
GENERATED_TOKENS = Metric("vl2_generated_tokens_total", "Tokens given to clients, as they come.")
RESULT_CACHE_HITS = Metric(
    "vl2_result_cache_hits_total", "Answers that were given before and given again; their tokens count nowhere."
)

# ---- the server ----

READY = Metric("vl2_ready", "1 while /health/ready is 200.")
RESIDENT_BYTES = Metric("vl2_server_resident_memory_bytes", "Memory of the HTTP server's process.", ("process",))
BUILD_INFO = Metric("vl2_build_info", "Always 1; what runs is in the labels.", ("version", "python", "device", "dtype"))

SERVER_METRICS = (
    REQUESTS, IN_FLIGHT, REQUEST_SECONDS, FIRST_TOKEN_SECONDS, INTER_TOKEN_SECONDS, INTAKE_SECONDS, QUEUE_SECONDS,
    VISION_SECONDS, PREFILL_SECONDS, DECODE_SECONDS, PROMPT_TOKENS, CACHED_TOKENS, GENERATED_TOKENS, RESULT_CACHE_HITS,
    READY, RESIDENT_BYTES, BUILD_INFO,
)  # fmt: skip


# ---- each engine ----


def _engine(name: str, help: str, *labels: str, buckets: tuple[float, ...] | None = None) -> Metric:
    return Metric(f"vl2_engine_{name}", help, ("replica", *labels), buckets)


ENGINE_READY = _engine("ready", "1 while the engine takes requests.")
ENGINE_RESTARTS = _engine("restarts_total", "Times the engine process was started anew.")
ENGINE_NUMBERS: dict[str, Metric] = {
    "num_running": _engine("running_sequences", "Answers being generated."),
    "num_waiting": _engine("waiting_sequences", "Answers waiting in the queue."),
    "num_pages_used": _engine("kv_pages_used", "Pages of the KV cache that answers hold."),
    "num_pages_cached": _engine("kv_pages_cached", "Pages kept for prompts that begin alike; free when needed."),
    "num_pages": _engine("kv_pages", "Pages of the KV cache."),
    "image_cache_used_bytes": _engine("image_cache_used_bytes", "Encoded picture tiles that are kept."),
    "image_cache_bytes": _engine("image_cache_bytes", "Room for encoded picture tiles."),
    "prompt_tokens_total": _engine("prompt_tokens_total", "Prompt tokens taken in, cached ones too."),
    "cached_tokens_total": _engine("cached_tokens_total", "Prompt tokens that were not computed again."),
    "generated_tokens_total": _engine("generated_tokens_total", "Tokens generated, for clients that left too."),
    "tiles_encoded_total": _engine("tiles_encoded_total", "Picture tiles run through the vision tower."),
    "tile_hits_total": _engine("tile_hits_total", "Picture tiles found in the image cache."),
    "vision_seconds_total": _engine("vision_seconds_total", "Time the vision tower worked."),
    "resident_bytes": _engine("resident_memory_bytes", "Memory of the engine's process."),
    "preemptions_total": _engine("preemptions_total", "Answers put back to the queue for want of pages."),
}
"""Field of `EngineStats` → its metric."""
STEP_SECONDS = _engine(
    "step_seconds",
    "Steps by kind: decode; prefill; mixed (both); vision (with picture tiles, whatever else).",
    "kind",
    buckets=STEP_SECONDS_BOUNDS,
)
STEP_SEQUENCES = _engine("step_sequences", "Answers computed for in one step.", buckets=STEP_SEQUENCES_BOUNDS)
ENGINE_METRICS = (ENGINE_READY, ENGINE_RESTARTS, *ENGINE_NUMBERS.values(), STEP_SECONDS, STEP_SEQUENCES)


# ---- GPUs ----


def _gpu(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"vl2_gpu_{name}", help, ("replica", *labels))


GPU_READINGS: dict[str, Metric] = {
    "utilization": _gpu("utilization_ratio", "Share of the last interval in which a kernel ran."),
    "memory_used_bytes": _gpu("memory_used_bytes", "Memory in use, by all processes."),
    "memory_total_bytes": _gpu("memory_total_bytes", "Memory of the card."),
    "power_watts": _gpu("power_watts", "Power drawn."),
    "temperature_celsius": _gpu("temperature_celsius", "Temperature."),
}
"""Field of `GPUReading` → its metric."""
GPU_THROTTLED = _gpu("throttled", "1 while clocks are lowered: power_cap, thermal, hardware.", "reason")
GPU_ALLOCATED = _gpu("memory_allocated_bytes", "Memory that tensors of the engine use.")
GPU_RESERVED = _gpu("memory_reserved_bytes", "Memory that the engine has taken from the driver.")
GPU_FRAGMENTATION = _gpu(
    "memory_fragmentation_ratio",
    "Share of the reserved memory that is free but in blocks which are partly in use: no larger tensor can have it.",
)
GPU_METRICS = (*GPU_READINGS.values(), GPU_THROTTLED, GPU_ALLOCATED, GPU_RESERVED, GPU_FRAGMENTATION)

CATALOGUE = {
    "Requests, tokens and the server": SERVER_METRICS,
    "Engines": ENGINE_METRICS,
    "GPUs (absent without one)": GPU_METRICS,
}


def markdown() -> str:
    parts = []
    for heading, metrics in CATALOGUE.items():
        rows = [
            f"| `{m.name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels)} | {m.help} |" for m in metrics
        ]
        table = "\n".join(["| name | kind | labels | |", "| --- | --- | --- | --- |", *rows])
        parts.append(f"## {heading}\n\n{table}\n")
    return "\n".join(parts)
