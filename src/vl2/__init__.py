"""vl2 serves DeepSeek-VL2. Public names are loaded when they are first used: `import vl2` does not import torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vl2.core.errors import CapacityError, EngineError, RequestError, SetupError, VL2Error
    from vl2.core.types import Completion, Delta, Grammar, ImagePart, Message, SamplingParams
    from vl2.llm import LLM

_HOMES = {
    "LLM": "vl2.llm",
    **dict.fromkeys(("Completion", "Delta", "Grammar", "ImagePart", "Message", "SamplingParams"), "vl2.core.types"),
    **dict.fromkeys(("CapacityError", "EngineError", "RequestError", "SetupError", "VL2Error"), "vl2.core.errors"),
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vl2' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
