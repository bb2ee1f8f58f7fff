"""What computes an engine's steps: PyTorch, or ONNX Runtime where there is no PyTorch. Chosen once, at the start."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from vl2.core.config import EngineConfig
from vl2.core.errors import SetupError
from vl2.core.model_config import ModelConfig
from vl2.core.stats import DeviceMemory, ModelInfo
from vl2.edge.bundle import is_bundle
from vl2.engine.pending import PendingStep
from vl2.engine.scheduler import StepBatch
from vl2.engine.vision_clock import VisionClock

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


class StepRunner(Protocol):
    """`runner.Runner` or `onnx_runner.OnnxRunner`, as the engine sees them."""

    model_config: ModelConfig
    max_context_tokens: int
    num_tile_slots: int
    fingerprint: bytes  # of the weights
    vision_clock: VisionClock

    @property
    def info(self) -> ModelInfo: ...

    @property
    def overlaps(self) -> bool:
        """Whether `launch` returns before the step's tokens are there."""
        ...

    @property
    def replays(self) -> bool:
        """Whether generated tokens are computed otherwise than prompts, and that must not show (`Scheduler`)."""
        ...

    @property
    def step_sizes(self) -> Sequence[int]:
        """Numbers of tokens that a step with prompts is filled up to; empty: any number will do."""
        ...

    @property
    def tile_bytes(self) -> int:
        """Of one encoded tile."""
        ...

    def memory(self) -> DeviceMemory | None: ...

    def launch(self, batch: StepBatch) -> PendingStep: ...

    def is_usable(self) -> bool:
        """Whether further steps can be computed, after one that failed."""
        ...


def open_runner(folder: Path, config: EngineConfig, on_progress: Progress | None) -> StepRunner:
    """Raises: SetupError."""
    if choose_engine(folder, config) == "onnx":
        from vl2.engine.onnx_runner import OnnxRunner

        return OnnxRunner(folder, config, on_progress)
    from vl2.engine.runner import Runner  # imports torch

    return Runner(folder, config, on_progress)


def choose_engine(folder: Path, config: EngineConfig) -> str:
    """auto: an exported model runs on ONNX Runtime, a checkpoint on PyTorch if that is installed.

    Raises: SetupError for what is asked for and is not there.
    """
    has_torch, has_onnxruntime = (find_spec(name) is not None for name in ("torch", "onnxruntime"))
    wanted = config.engine
    if wanted == "auto":
        wanted = "onnx" if is_bundle(folder) or (has_onnxruntime and not has_torch) else "torch"
    if wanted == "torch" and is_bundle(folder):
        raise SetupError(f"{folder} is an exported model, which PyTorch does not read; use --engine onnx")
    if wanted == "torch" and not has_torch:
        raise SetupError("PyTorch is not installed; install vl2[torch], or vl2[edge] to run without it")
    if wanted == "onnx" and not has_onnxruntime:
        raise SetupError("--engine onnx needs onnxruntime; install vl2[edge]")
    return wanted
