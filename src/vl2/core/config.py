"""Every option of `vl2`, once: name, type, default, help and unit. The CLI builds its flags from these fields.

Order of precedence: flag, then the environment variable `VL2_<FIELD>`, then the default; merged once, by
`cli/options.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def option(default: Any, help: str, *, choices: tuple[str, ...] = (), secret: bool = False) -> Any:
    """A dataclass field that carries what its flag needs. Tuples are flags that may be repeated."""
    return field(default=default, metadata={"help": help, "choices": choices, "secret": secret})


@dataclass(frozen=True)
class EngineConfig:
    """How the model runs. Validated where it is used; sizes in tokens, tiles and pages."""

    device: str = option(
        "auto", "Where the model runs: cuda when there is a GPU, else cpu.", choices=("auto", "cpu", "cuda")
    )
    dtype: str = option(
        "auto",
        "Number format of weights and cache. auto: bfloat16 on a GPU or a CPU that computes in it, else float32.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    max_context_tokens: int | None = option(
        None, "Longest prompt + answer. Default: what the model was trained for (4096)."
    )
    max_sequences: int = option(64, "Answers generated at the same time; more wait in the queue.")
    max_queue: int = option(512, "Requests that may wait; one more is answered 429 with Retry-After.")
    max_queued_image_bytes: int = option(
        2 * 2**30, "Host memory for the pictures of running and queued requests, bytes."
    )
    max_step_tokens: int = option(
        2048, "Tokens computed in one step; longer prompts are computed in chunks of this size."
    )
    max_step_tiles: int = option(10, "Picture tiles encoded between two decoding steps.")
    page_size_tokens: int = option(16, "Tokens in one page of the KV cache.")
    kv_cache_tokens: int | None = option(None, "Tokens that the KV cache holds. Default: from the free memory.")
    kv_memory_share: float = option(0.9, "Share of the free GPU memory that weights and KV cache may take.")
    prefix_cache: bool = option(True, "Keep what was computed for prompts that begin alike.")
    image_cache_tiles: int = option(256, "Encoded tiles kept for pictures that come again.")
    deterministic: bool | None = option(
        None,
        "Same request and seed, same tokens and logprobs to the last bit, whatever else runs. Default: on a CPU.",
    )
    replicas: int = option(
        1, "Engines that share the work, each a process with the whole model: one per GPU. Other limits are for each."
    )
    threads: int | None = option(
        None, "CPU threads of each engine. Default: the cores this process may use, divided by the engines."
    )
    replica_idx: int = 0  # which of the replicas this engine is; set by us, no flag


@dataclass(frozen=True)
class ProcessorConfig:
    """Limits on pictures."""

    max_image_bytes: int = option(20 * 2**20, "Largest encoded picture, bytes.")
    max_image_pixels: int = option(50_000_000, "Largest picture, width × height; more is refused before it is decoded.")


@dataclass(frozen=True)
class ServerConfig:
    """How HTTP behaves."""

    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 for all interfaces.")
    port: int = option(8000, "Port to listen on; 0 takes a free one.")
    api_key: tuple[str, ...] = option((), "Key that clients must send as Bearer token (may be repeated).", secret=True)
    served_model_name: str | None = option(None, "Name of the model in the API. Default: the last part of MODEL.")
    allowed_image_folder: str | None = option(None, "Folder below which file:// pictures and image_path may be read.")
    max_body_bytes: int = option(100 * 2**20, "Largest request body, bytes.")
    fetch_timeout_s: float = option(10.0, "Time to fetch a picture by URL, seconds.")
    drain_timeout_s: float = option(30.0, "On SIGTERM, time for running requests to end, seconds.")
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
