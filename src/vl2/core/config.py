"""Every option of `vl2`, once: name, type, default, help and unit. The CLI builds its flags from these fields.

Order of precedence: flag, then the environment variable `VL2_<FIELD>`, then the default; merged once, by
`cli/options.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from vl2.core.errors import SetupError
from vl2.core.logs import FORMATS
from vl2.core.secret import Secret


@dataclass(frozen=True)
class Rule:
    """What the value of an option must be."""

    holds: Callable[[Any], bool]
    text: str


def between(least: float, most: float) -> Rule:
    return Rule(lambda value: least <= value <= most, f"between {least} and {most}")


def at_least(least: float) -> Rule:
    return Rule(lambda value: least <= value, f"at least {least}")


def option(default: Any, help: str, *, rule: Rule | None = None, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field that carries what its flag needs. Tuples are flags that may be repeated."""
    return field(default=default, metadata={"help": help, "rule": rule, "choices": choices})


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

    engine: str = option(
        "auto",
        "What computes. auto: onnx for a model that `vl2 export` wrote and where there is no PyTorch, else torch.",
        choices=("auto", "torch", "onnx"),
    )
    provider: str = option(
        "auto",
        "Execution provider of ONNX Runtime. auto: the fastest that is installed.",
        choices=("auto", "cpu", "cuda", "tensorrt"),
    )
    device: str = option(
        "auto",
        "Where the model runs. auto: cuda on a GPU (Ampere or later), else cpu.",
        choices=("auto", "cpu", "cuda"),
    )
    dtype: str = option(
        "auto",
        "Number format of weights and cache. auto: bfloat16 on a GPU or a CPU that computes in it, else float32.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    quantization: str = option(
        "auto",
        "Bits of the decoder's weights. auto: as the checkpoint holds them; int4, int8, fp8: rounded while they are "
        "loaded.",
        choices=("auto", "int4", "int8", "fp8"),
    )
    kv_dtype: str = option(
        "auto",
        "Number format of the KV cache. auto: that of --dtype; fp8: half or a quarter of the memory, rounded.",
        choices=("auto", "fp8"),
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
    random_weights: bool = option(
        False, "Draw the weights at random instead of reading them: only to measure speed and memory."
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
    """How pictures and texts are read, and limits on them."""

    max_image_bytes: int = option(20 * 2**20, "Largest encoded picture, bytes.", rule=at_least(1))
    max_image_pixels: int = option(
        50_000_000, "Largest picture, width × height; more is refused before it is decoded.", rule=at_least(1)
    )
    max_pdf_pages: int = option(16, "Pages of one PDF that are taken as pictures.", rule=between(1, 1000))
    decode_timeout_s: float = option(
        10.0, "Time to decode a PDF, TIFF or GIF, seconds; then its process is killed.", rule=between(0.1, 600)
    )
    decode_memory_bytes: int = option(
        2**30, "Memory of a process that decodes PDF, TIFF and GIF, bytes.", rule=at_least(256 * 2**20)
    )
    grammar_timeout_s: float = option(
        5.0, "Time to compile a schema or an expression, seconds; then it is refused.", rule=between(0.1, 600)
    )
    exif: str = option(
        "apply", "Turn pictures as their EXIF orientation says; official: do not.", choices=("apply", "official")
    )
    special_tokens: str = option(
        "text",
        "What the text of role, begin, end and padding tokens in a message becomes: text, or, as in the official "
        "code, those tokens.",
        choices=("text", "official"),
    )


@dataclass(frozen=True)
class ServerConfig:
    """How HTTP behaves."""

    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 for all interfaces.")
    port: int = option(8000, "Port to listen on; 0 takes a free one.", rule=between(0, 65535))
    frontends: int = option(
        1,
        "Processes for HTTP, pictures and text, which share the engines; more when one core cannot keep up.",
        rule=between(1, 64),
    )
    tls_cert: str | None = option(None, "File of the certificate chain (PEM); with --tls-key the server speaks https.")
    tls_key: str | None = option(None, "File of the certificate's private key (PEM).")
    api_key: tuple[Secret, ...] = option((), "Key that clients must send as Bearer token (may be repeated).")
    keys_file: str | None = option(
        None, "File of hashed keys, each of a tenant, as `vl2 key` writes it; read again when it changes."
    )
    scrape_key: Secret | None = option(None, "Key that opens /metrics, and nothing else.")
    admin_port: int | None = option(
        None, "A second port for /metrics and the probes, without keys.", rule=between(0, 65535)
    )
    admin_host: str = option("127.0.0.1", "Address of the --admin-port.")
    allow_without_keys: bool = option(False, "Listen beyond this machine though there are no keys.")
    allowed_host: tuple[str, ...] = option(
        (),
        "Name in the Host header that is taken besides localhost, this machine's name and addresses; * takes any "
        "(may be repeated). Default: any where keys are needed.",
    )
    allowed_origin: tuple[str, ...] = option(
        (), "Origin of web pages that may use the API, as https://app.example; * takes any (may be repeated)."
    )
    shared_cache: bool = option(
        False, "Tenants share the caches of prefixes, pictures and results. One can then time what another has sent."
    )
    result_cache_bytes: int = option(
        0,
        "Memory for answers that are given again to the very same request of the same tenant, if it is greedy or has a "
        "seed, bytes; 0: none are kept.",
        rule=at_least(0),
    )
    served_model_name: str | None = option(None, "Name of the model in the API. Default: the last part of MODEL.")
    allow_dir: str | None = option(None, "Folder below which file:// pictures and image_path may be read.")
    state_dir: str | None = option(None, "Folder for files and batches; without it there are none.")
    max_state_bytes: int = option(10 * 2**30, "Files of one tenant together, bytes.", rule=at_least(0))
    max_batch_lines: int = option(50_000, "Lines of one batch.", rule=at_least(1))
    batch_concurrency: int = option(8, "Lines of batches that are asked at the same time.", rule=between(1, 4096))
    node_name: str | None = option(
        None,
        "Name of this server in the ids of what it keeps, lower-case letters and digits. Default: from the host name.",
        rule=Rule(lambda name: bool(re.fullmatch("[a-z0-9]{1,32}", name)), "1 to 32 lower-case letters and digits"),
    )
    max_stored_responses: int = option(1000, "Responses kept in memory to go on from.", rule=at_least(0))
    max_stored_response_bytes: int = option(
        256 * 2**20, "Memory for them, their pictures included, bytes.", rule=at_least(0)
    )
    max_body_bytes: int = option(100 * 2**20, "Largest request body, bytes.", rule=at_least(1))
    max_json_depth: int = option(64, "Deepest nesting of lists and objects in a body.", rule=between(4, 500))
    max_json_values: int = option(200_000, "Most values in a body.", rule=at_least(100))
    max_pictures: int | None = option(
        None, "Pictures in one request, at most (and by default) what the context holds.", rule=at_least(0)
    )
    fetch: bool = option(True, "Fetch pictures by http(s) URL.")
    fetch_timeout_s: float = option(10.0, "Time to fetch a picture by URL, seconds.", rule=between(0.1, 3600))
    fetch_allow_cidr: tuple[str, ...] = option(
        (), "Network that may be fetched from though it is not public, as 10.1.0.0/16 (may be repeated)."
    )
    fetch_allow_domain: tuple[str, ...] = option(
        (), "Domain that may be fetched from, with all below it; others are refused then (may be repeated)."
    )
    fetch_proxy: str | None = option(
        None, "Proxy for fetching, as http://proxy.example:3128; it then looks names up. Proxy variables are ignored."
    )
    drain_timeout_s: float = option(
        30.0, "On SIGTERM, time for running requests to end, seconds.", rule=between(0, 86400)
    )
    log_level: str = option("info", "How much to log.", choices=("debug", "info", "warning", "error"))
    otlp_endpoint: str | None = option(
        None, "Collector that traces are sent to by OTLP over HTTP, as http://127.0.0.1:4318. Needs vl2[traces]."
    )
    trace_share: float = option(
        1.0, "Share of the requests that are traced, of those that bring no decision with them.", rule=between(0, 1)
    )
    log_format: str = option("text", "Log lines as text, or one JSON object a line.", choices=FORMATS)


@dataclass(frozen=True)
class HubOptions:
    """Where a model that is no folder comes from."""

    hub: str = option("huggingface", "Where models are downloaded from.", choices=("huggingface", "modelscope"))
    hub_endpoint: str | None = option(None, "Address of a mirror. Default: HF_ENDPOINT, or the hub itself.")
    hub_token: Secret | None = option(None, "Token for private models. Default: HF_TOKEN, or the stored login.")
    revision: str | None = option(None, "Branch, tag or commit of the model.")
    cache_folder: str | None = option(None, "Where downloads are kept. Default: the hub's usual cache.")
    offline: bool = option(False, "Use what is already downloaded; open no connection.")
