"""Where ONNX Runtime computes: chosen once, in the open. A provider that is asked for and not there is an error."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl2.core.errors import SetupError

log = logging.getLogger(__name__)

NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
PACKAGES = {
    "cuda": "onnxruntime-gpu, with CUDA and cuDNN of the versions that it names",
    "tensorrt": "onnxruntime-gpu and TensorRT; on a Jetson, NVIDIA's own build of onnxruntime",
}
MAX_TILES = 10
"""The most tiles that one run of a TensorRT engine takes: a picture has up to 10, its global view included."""

Option = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Providers:
    """The tower may have TensorRT; the decoder, whose cache grows, runs on CUDA then."""

    name: str  # cpu, cuda or tensorrt
    vision: list[Option]
    decoder: list[Option]

    @property
    def device(self) -> str:
        """Of the decoder's cache, as ONNX Runtime names it."""
        return "cpu" if self.name == "cpu" else "cuda"


def choose_providers(wanted: str, available: list[str], engines: Path, side: int) -> Providers:
    """`wanted`: auto, cpu, cuda or tensorrt. `engines`: folder that TensorRT keeps its engines in; `side` of a tile.

    Raises: SetupError.
    """
    if wanted == "auto":
        wanted = next(name for name in ("tensorrt", "cuda", "cpu") if NAMES[name] in available)
        log.info("ONNX Runtime computes on %s (it has %s)", wanted, ", ".join(available))
    if NAMES[wanted] not in available:
        raise SetupError(
            f"--provider {wanted}, but this onnxruntime has only {', '.join(available)}; "
            f"install {PACKAGES[wanted]}, or use --provider cpu"
        )
    cpu: Option = (NAMES["cpu"], {})
    if wanted == "cpu":
        return Providers("cpu", [cpu], [cpu])
    cuda: Option = (NAMES["cuda"], {})
    if wanted == "cuda":
        return Providers("cuda", [cuda, cpu], [cuda, cpu])
    tensorrt: Option = (NAMES["tensorrt"], _tensorrt_options(engines, side))
    return Providers("tensorrt", [tensorrt, cuda, cpu], [cuda, cpu])


def _tensorrt_options(engines: Path, side: int) -> dict[str, Any]:
    """Engines are built once for a card, which takes minutes, and kept; one is for every number of tiles."""
    shapes = {"min": 1, "opt": 2, "max": MAX_TILES}
    return {
        "trt_fp16_enable": True,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(engines),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(engines),
        **{f"trt_profile_{kind}_shapes": f"tiles:{count}x{side}x{side}x3" for kind, count in shapes.items()},
    }
