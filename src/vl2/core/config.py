"""Every option of `vl2`, once: name, type, default, help and unit. The CLI builds its flags from these fields.

Order of precedence: flag, then the environment variable `VL2_<FIELD>`, then the default; merged once, by
`cli/options.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from vl2.core.errors import SetupError


@dataclass(frozen=True)
class Rule:
    """What the value of an option must be."""

    holds: Callable[[Any], bool]
    text: str


def between(least: float, most: float) -> Rule:
    return Rule(lambda value: least <= value <= most, f"between {least} and {most}")


def at_least(least: float) -> Rule:
    return Rule(lambda value: least <= value, f"at least {least}")


def option(
    default: Any, help: str, *, rule: Rule | None = None, choices: tuple[str, ...] = (), secret: bool = False
) -> Any:
    """A dataclass field that carries what its flag needs. Tuples are flags that may be repeated."""
    return field(default=default, metadata={"help": help, "rule": rule, "choices": choices, "secret": secret})


def check_options(*configs: Any) -> None:
    """Raises: SetupError that names the flag, its value and what it must be."""
    for config in configs:
        for item in fields(config):
            value, rule, choices = getattr(config, item.name), item.metadata.get("rule"), item.metadata.get("choices")
            if choices and value not in choices:
                rule = Rule(lambda _: False, "one of " + ", ".join(choices))
            if value is not None and rule is not None and not rule.holds(value):
                flag = "--" + item.name.replace("_", "-")
                shown = f"{value:g}" if isinstance(value, float) else value
                raise SetupError(f"{flag} is {shown}, but must be {rule.text}", param=item.name)


PAGE_SIZES = tuple(2**power for power in range(11))


@dataclass(frozen=True)
class EngineConfig:
    """How the model runs. `check_options` says whether the values make sense; sizes in tokens, tiles and pages."""

    device: str = option(
        "auto", "Where the model runs: cuda when there is a GPU, else cpu.", choices=("auto", "cpu", "cuda")
    )
    dtype: str = option(
        "auto",
        "Number format of weights and cache. auto: bfloat16 on a GPU or a CPU that computes in it, else float32.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    max_context_tokens: int | None = option(
        None,
        "Longest prompt + answer, at most (and by default) what the model was trained for: 4096.",
        rule=at_least(64),
    )
    max_sequences: int = option(
        64, "Answers generated at the same time; more wait in the queue.", rule=between(1, 4096)
    )
    max_queue: int = option(512, "Requests that may wait; one more is answered 429 with Retry-After.", rule=at_least(0))
    max_queued_image_bytes: int = option(
        2 * 2**30, "Host memory for the pictures of running and queued requests, bytes.", rule=at_least(0)
    )
    max_step_tokens: int = option(
        2048, "Tokens computed in one step; longer prompts are computed in chunks of this size.", rule=at_least(1)
    )
    max_step_tiles: int = option(10, "Picture tiles encoded between two decoding steps.", rule=at_least(1))
    page_size_tokens: int = option(
        16,
        "Tokens in one page of the KV cache, a power of two.",
        rule=Rule(lambda size: size in PAGE_SIZES, f"a power of two from 1 to {PAGE_SIZES[-1]}"),
    )
    kv_cache_tokens: int | None = option(
        None, "Tokens that the KV cache holds. Default: from the free memory.", rule=at_least(1)
    )
    kv_memory_share: float = option(
        0.9, "Share of the GPU's memory that weights and KV cache may take.", rule=between(0.01, 1)
    )
    prefix_cache: bool = option(True, "Keep what was computed for prompts that begin alike.")
    image_cache_tiles: int = option(256, "Encoded tiles kept for pictures that come again.", rule=at_least(0))
    deterministic: bool | None = option(
        None,
        "Same request and seed, same tokens and logprobs to the last bit, whatever else runs. Default: on a CPU.",
    )
    replicas: int = option(
        1,
        "Engines that share the work, each a process with the whole model: one per GPU. Other limits are for each.",
        rule=between(1, 64),
    )
    threads: int | None = option(
        None,
        "CPU threads of each engine. Default: the cores this process may use, divided by the engines.",
        rule=between(1, 1024),
    )
    engine_timeout_s: float | None = option(
        None,
        "An engine that gives no sign of life for so long, not even between two steps, is killed and started again, "
        "seconds. Default: 60; 600 while a CPU works, where one step may be long.",
        rule=at_least(1),
    )
    replica_idx: int = 0  # which of the replicas this engine is; set by us, no flag


@dataclass(frozen=True)
class ProcessorConfig:
    """Limits on pictures."""

    max_image_bytes: int = option(20 * 2**20, "Largest encoded picture, bytes.", rule=at_least(1))
    max_image_pixels: int = option(
        50_000_000, "Largest picture, width × height; more is refused before it is decoded.", rule=at_least(1)
    )


@dataclass(frozen=True)
class ServerConfig:
    """How HTTP behaves."""

    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 for all interfaces.")
    port: int = option(8000, "Port to listen on; 0 takes a free one.", rule=between(0, 65535))
    api_key: tuple[str, ...] = option((), "Key that clients must send as Bearer token (may be repeated).", secret=True)
    served_model_name: str | None = option(None, "Name of the model in the API. Default: the last part of MODEL.")
    allowed_image_folder: str | None = option(None, "Folder below which file:// pictures and image_path may be read.")
    max_body_bytes: int = option(100 * 2**20, "Largest request body, bytes.", rule=at_least(1))
    fetch_timeout_s: float = option(10.0, "Time to fetch a picture by URL, seconds.", rule=between(0.1, 3600))
    drain_timeout_s: float = option(
        30.0, "On SIGTERM, time for running requests to end, seconds.", rule=between(0, 86400)
    )
    log_level: str = option("info", "How much to log.", choices=("debug", "info", "warning", "error"))


@dataclass(frozen=True)
class HubOptions:
    """Where a model that is no folder comes from."""

    hub: str = option("huggingface", "Where models are downloaded from.", choices=("huggingface", "modelscope"))
    hub_endpoint: str | None = option(None, "Address of a mirror. Default: HF_ENDPOINT, or the hub itself.")
    hub_token: str | None = option(
        None, "Token for private models. Default: HF_TOKEN, or the stored login.", secret=True
    )
    revision: str | None = option(None, "Branch, tag or commit of the model.")
    cache_folder: str | None = option(None, "Where downloads are kept. Default: the hub's usual cache.")
    offline: bool = option(False, "Use what is already downloaded; open no connection.")
