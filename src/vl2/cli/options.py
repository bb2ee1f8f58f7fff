"""Flags from the fields of the option dataclasses. The only place that reads the environment (through click).

A command decorated with `@options(engine=EngineConfig, hub=HubOptions)` gets frozen objects `engine` and `hub`, merged
from flag, `VL2_<FIELD>` and default.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import Any

import click

from vl2.core.config import check_options
from vl2.core.secret import Secret
from vl2.core.types import SamplingParams

Command = Callable[..., Any]

SAMPLING_HELP = {
    "max_tokens": "Longest answer, tokens. Default: until the context is full.",
    "temperature": "0 takes the likeliest token every time; higher values vary more.",
    "top_p": "Draw from the likeliest tokens that together have this probability.",
    "top_k": "Draw from this many likeliest tokens; 0 is off.",
    "min_p": "Drop tokens less likely than this share of the likeliest.",
    "repetition_penalty": "Above 1 makes repeated tokens less likely.",
    "seed": "The same seed gives the same answer.",
    "stop": "Text that ends the answer (may be repeated).",
}

model_argument = click.argument("model", default="nano", envvar="VL2_MODEL")


def options(**configs: type[Any]) -> Callable[[Command], Command]:
    """Add the flags of each dataclass; the command receives them as objects under the keywords' names."""

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def merged(**values: Any) -> Any:
            for name, config in configs.items():
                values[name] = config(**{field.name: values.pop(field.name) for field in _fields(config)})
                check_options(values[name])
            return function(**values)

        command: Command = merged
        for config in reversed(list(configs.values())):
            hints = typing.get_type_hints(config)
            for field in reversed(_fields(config)):
                meta = field.metadata
                command = _flag(
                    field.name,
                    hints[field.name],
                    field.default,
                    meta["help"],
                    choices=meta["choices"],
                    envvar=f"VL2_{field.name.upper()}",
                )(command)
        return command

    return decorate


def _fields(config: Any) -> list[dataclasses.Field[Any]]:
    """Those that are flags: what has no help text is set by the program."""
    return [field for field in dataclasses.fields(config) if "help" in field.metadata]


def sampling_options(function: Command) -> Command:
    """Add the flags of `SamplingParams` that make sense on a command line; the command receives `params`."""

    @functools.wraps(function)
    def merged(**values: Any) -> Any:
        values["params"] = SamplingParams(**{name: values.pop(name) for name in SAMPLING_HELP})
        return function(**values)

    command: Command = merged
    hints = typing.get_type_hints(SamplingParams)
    defaults = {field.name: field.default for field in dataclasses.fields(SamplingParams)}
    for name in reversed(SAMPLING_HELP):
        command = _flag(name, hints[name], defaults[name], SAMPLING_HELP[name])(command)
    return command


def _flag(
    name: str,
    hint: Any,
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    envvar: str | None = None,
) -> Callable[[Command], Command]:
    kind, is_repeated = _kind(hint)
    kind = SECRET if kind is Secret else kind
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=default, help=help, envvar=envvar)
    return click.option(
        flag,
        name,
        type=click.Choice(choices) if choices else kind,
        multiple=is_repeated,
        default=default,
        show_default=default not in (None, ()),
        metavar=None if choices else {str: "TEXT", int: "N", float: "X", SECRET: "SECRET"}[kind],
        help=help,
        envvar=envvar,
    )


class _SecretType(click.ParamType):  # type: ignore[type-arg]  # generic in some versions
    name = "secret"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Secret:
        return value if isinstance(value, Secret) else Secret(value)


SECRET: Any = _SecretType()


def _kind(hint: Any) -> tuple[Any, bool]:
    """`int | None` → (int, False); `tuple[str, ...]` → (str, True)."""
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint, False


def describe(**configs: Any) -> str:
    """The values that are not the defaults, for the log; secrets print as ***."""
    pairs = []
    for config in configs.values():
        for field in _fields(config):
            value = getattr(config, field.name)
            if value != field.default:
                pairs.append(f"{field.name}={value}")
    return " ".join(pairs)
