"""Arguments of the Ray application ⇄ our option dataclasses. Needs no Ray."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass
from typing import Any

from vl2.core.config import (
    EngineConfig,
    HubOptions,
    ProcessorConfig,
    ServerConfig,
    at_least,
    between,
    check_options,
    option,
)
from vl2.core.errors import SetupError
from vl2.core.secret import Secret
from vl2.deploy.render import Files, render

NOT_HERE = {
    "host": "Ray's proxies listen: http_options",
    "port": "Ray's proxies listen: http_options",
    "admin_port": "metrics come at /metrics of each replica's node",
    "tls_cert": "put a proxy with TLS in front",
    "tls_key": "put a proxy with TLS in front",
    "replicas": "use min_replicas and max_replicas",
    "state_dir": "files need one server that keeps them; run `vl2 serve` beside for those",
}
"""Options of `vl2 serve` that make no sense in a replica, and what to do instead."""


@dataclass(frozen=True)
class RayOptions:
    """What Ray decides."""

    model: str = option("nano", "MODEL of `vl2 serve`.")
    min_replicas: int = option(1, "Replicas at least.", rule=between(1, 1000))
    max_replicas: int = option(1, "Replicas at most; more than the least: scaled.", rule=between(1, 1000))
    target_ongoing_requests: int = option(
        32, "Requests under way in a replica that more are started above.", rule=at_least(1)
    )
    num_gpus: float = option(1.0, "GPUs of a replica.", rule=between(0, 64))
    num_cpus: float = option(2.0, "Cores of a replica.", rule=between(0, 1024))


@dataclass(frozen=True, slots=True)
class Settings:
    """All options of a replica."""

    ray: RayOptions
    server: ServerConfig
    engine: EngineConfig
    processor: ProcessorConfig
    hub: HubOptions


CONFIGS: dict[str, type[Any]] = {
    "ray": RayOptions,
    "server": ServerConfig,
    "engine": EngineConfig,
    "processor": ProcessorConfig,
    "hub": HubOptions,
}


def read_settings(args: dict[str, Any]) -> Settings:
    """Names are those of the flags, with _ for -; values may be texts, as `serve run` passes them.

    Raises: SetupError.
    """
    left = dict(args)
    for name in NOT_HERE:
        if name in left:
            raise SetupError(f"{name} is no option of a Ray replica: {NOT_HERE[name]}", param=name)
    made = {}
    for part, config in CONFIGS.items():
        hints = typing.get_type_hints(config)
        names = [field.name for field in dataclasses.fields(config) if "help" in field.metadata]
        values = {name: _convert(name, hints[name], left.pop(name)) for name in names if name in left}
        made[part] = config(**values)
    if left:
        raise SetupError(_unknown(next(iter(left))))
    settings = Settings(**made)
    check_options(*made.values())
    least, most = settings.ray.min_replicas, settings.ray.max_replicas
    if most < least:
        raise SetupError(f"max_replicas is {most}, but must be at least min_replicas {least}")
    server = settings.server
    if not (server.api_key or server.keys_file or server.allow_without_keys):
        raise SetupError("there are no keys; set api_key or keys_file, or allow_without_keys if everyone may ask")
    return settings


def _unknown(name: str) -> str:
    known = [field.name for config in CONFIGS.values() for field in dataclasses.fields(config)]
    close = difflib.get_close_matches(name, known, n=1)
    return f"there is no option {name!r}" + (f"; did you mean {close[0]}?" if close else "; see `vl2 serve --help`")


def _convert(name: str, hint: Any, value: Any) -> Any:
    """`value` as the field's type. Raises: SetupError."""
    if typing.get_origin(hint) is tuple:
        values = value.split() if isinstance(value, str) else value
        return tuple(_convert(name, typing.get_args(hint)[0], item) for item in values)
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    if hint is Secret:
        return value if isinstance(value, Secret) else Secret(str(value))
    if hint is bool and isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)
    try:
        converted = hint(value) if not (hint is bool and not isinstance(value, bool)) else None
    except (TypeError, ValueError):
        converted = None
    if converted is None:
        raise SetupError(f"{name} is {value!r}, but must be a {hint.__name__}", param=name)
    return converted


def ray_files(options: RayOptions, hub: HubOptions) -> Files:
    """serve.yaml. Raises: SetupError."""
    if options.max_replicas < options.min_replicas:
        raise SetupError(f"--max-replicas is {options.max_replicas}, below --min-replicas {options.min_replicas}")
    return render("ray", o=options, hub=hub)
