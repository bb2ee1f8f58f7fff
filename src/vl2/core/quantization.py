"""Which linears of a checkpoint are held in few bits, and how: config.json's `quantization_config`, read and written.

Linears are named as in the official checkpoint. Read are compressed-tensors' `pack-quantized` and `float-quantized`,
GPTQ and fp8 with blocks; written is `pack-quantized` alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vl2.core.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """Symmetric: weight ≈ code · scale, with a scale for each `group_size` inputs of each output."""

    bits: int  # 4 or 8
    group_size: int | None  # None: one scale for all inputs of an output
    is_float: bool = False  # codes are float8 (e4m3) instead of integers; 8 bits, a scale for each output

    def num_groups(self, in_width: int) -> int:
        return in_width // self.group_size if self.group_size else 1

    def __str__(self) -> str:
        if self.is_float:
            return "fp8 by rows"
        return f"int{self.bits} in groups of {self.group_size}" if self.group_size else f"int{self.bits} by rows"


@dataclass(frozen=True, slots=True)
class StoredScheme:
    """How a checkpoint holds a linear: more ways than we compute with."""

    bits: int
    group_size: int | None = None
    is_symmetric: bool = True
    is_ordered: bool = True  # group g is inputs g · size …; else the checkpoint says each input's group
    is_float: bool = False  # float8 with scales
    is_blocked: bool = False  # of float8: a scale for each block of outputs and inputs

    @property
    def computable(self) -> WeightScheme | None:
        """As we multiply with it; None: it is made 16 bits when it is loaded."""
        is_plain = self.is_symmetric and self.is_ordered and not self.is_blocked and self.bits in (4, 8)
        return WeightScheme(self.bits, self.group_size, self.is_float) if is_plain else None

    def __str__(self) -> str:
        return f"fp{self.bits}" if self.is_float else f"int{self.bits}"


@dataclass(frozen=True, slots=True)
class SchemeGroup:
    """`targets` are names of linears, `re:` and an expression that matches from a name's start, or Linear: all."""

    targets: tuple[str, ...]
    scheme: StoredScheme


@dataclass(frozen=True, slots=True)
class Quantization:
    """`method` is config.json's quant_method, or round-to-nearest of a checkpoint that is not quantised."""

    method: str
    groups: tuple[SchemeGroup, ...]
    ignore: tuple[str, ...] = ()
    has_zero_minus_one: bool = False  # GPTQ's first format stores a zero point less one
    only: frozenset[str] | None = None  # of these linears alone; None: of all that the targets say

    def stored(self, linear: str) -> StoredScheme | None:
        """Names before expressions before Linear, as compressed-tensors chooses; None: 16 bits."""
        if any(_matches(target, linear) for target in self.ignore) or (
            self.only is not None and linear not in self.only
        ):
            return None
        for is_general in (False, True):
            for group in self.groups:
                if any(_matches(target, linear) for target in group.targets if (target == "Linear") == is_general):
                    return group.scheme
        return None

    def scheme_of(self, linear: str) -> WeightScheme | None:
        """What we compute with: None is 16 bits."""
        stored = self.stored(linear)
        return None if stored is None else stored.computable

    def to_config(self) -> dict[str, Any]:
        """config.json's `quantization_config`, in compressed-tensors' form."""
        groups = {}
        for number, group in enumerate(self.groups):
            groups[f"group_{number}"] = {
                "targets": list(group.targets),
                "weights": _weight_arguments(group.scheme),
                "input_activations": None,
                "output_activations": None,
                "format": "pack-quantized",
            }
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": list(self.ignore),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }


def _matches(target: str, linear: str) -> bool:
    if target == "Linear":
        return True
    return re.match(target[3:], linear) is not None if target.startswith("re:") else target == linear


def _weight_arguments(scheme: StoredScheme) -> dict[str, Any]:
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "strategy": "group" if scheme.group_size else "channel",
        "group_size": scheme.group_size,
        "symmetric": True,
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }


def parse_quantization(raw: Mapping[str, Any]) -> Quantization | None:
    """The content of config.json → Quantization; None: all is 16 or 32 bits.

    Raises: CheckpointError that names what is not supported.
    """
    section = raw.get("quantization_config")
    if section is None:
        return None
    if not isinstance(section, Mapping):
        raise CheckpointError(f"config.json: quantization_config is {section!r}, but must be an object")
    method = section.get("quant_method")
    parsers = {"compressed-tensors": _compressed_tensors, "gptq": _gptq, "fp8": _fp8}
    if method not in parsers:
        raise CheckpointError(
            f"config.json: quantization_config.quant_method is {method!r}, but vl2 reads only {', '.join(parsers)}"
        )
    try:
        return parsers[str(method)](section)
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise CheckpointError(f"config.json: quantization_config is malformed: {error!r}") from None


def _compressed_tensors(section: Mapping[str, Any]) -> Quantization:
    groups = []
    for name, group in section["config_groups"].items():
        where = f"config.json: quantization_config.config_groups.{name}"
        form = group.get("format") or section.get("format")
        if form not in ("pack-quantized", "float-quantized"):
            raise CheckpointError(f"{where}: format is {form!r}, but vl2 reads only pack-quantized and float-quantized")
        weights = group["weights"]
        is_float = weights.get("type", "int") == "float"
        bits, strategy = int(weights["num_bits"]), weights.get("strategy")
        if strategy not in ("group", "channel", "tensor", "block") or bits not in ((8,) if is_float else (4, 8)):
            raise CheckpointError(f"{where}: {bits} bits by {strategy}, but vl2 reads 4 and 8 bits by group or channel")
        size = int(weights["group_size"]) if strategy == "group" else None
        scheme = StoredScheme(
            bits,
            size if size != -1 else None,
            is_symmetric=bool(weights.get("symmetric", True)),
            is_ordered=weights.get("actorder") not in ("group", "dynamic"),
            is_float=is_float,
            is_blocked=strategy == "block",
        )
        groups.append(SchemeGroup(tuple(group["targets"]), scheme))
    return Quantization("compressed-tensors", tuple(groups), tuple(section.get("ignore") or ()))


def _gptq(section: Mapping[str, Any]) -> Quantization:
    """AutoGPTQ's and gptqmodel's. Which linears it concerns their tensors say; `dynamic` has exceptions."""
    form = section.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise CheckpointError(f"config.json: quantization_config.checkpoint_format is {form!r}, not gptq or gptq_v2")

    def scheme(settings: Mapping[str, Any]) -> StoredScheme:
        size, bits = int(settings["group_size"]), int(settings["bits"])
        if bits not in (4, 8):
            raise CheckpointError(f"config.json: quantization_config has {bits} bits, but vl2 reads 4 and 8")
        return StoredScheme(
            bits,
            size if size > 0 else None,
            is_symmetric=bool(settings.get("sym", True)),
            is_ordered=not settings.get("desc_act", False),
        )

    groups, ignore = [], []
    for pattern, changes in (section.get("dynamic") or {}).items():
        if pattern.startswith("-:"):
            ignore.append("re:.*" + pattern[2:])
        else:
            groups.append(SchemeGroup(("re:.*" + pattern.removeprefix("+:"),), scheme({**section, **changes})))
    groups.append(SchemeGroup(("Linear",), scheme(section)))
    return Quantization("gptq", tuple(groups), tuple(ignore), has_zero_minus_one=form == "gptq")


def _fp8(section: Mapping[str, Any]) -> Quantization:
    ignored = section.get("ignored_layers") or section.get("modules_to_not_convert") or ()
    ignore = tuple(name for module in ignored for name in (module, f"re:{re.escape(module)}\\."))
    scheme = StoredScheme(8, is_float=True, is_blocked=section.get("weight_block_size") is not None)
    return Quantization("fp8", (SchemeGroup(("Linear",), scheme),), ignore)
