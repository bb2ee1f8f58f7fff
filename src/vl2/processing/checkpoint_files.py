"""The small JSON files of a checkpoint that concern the processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vl2.core.errors import CheckpointError
from vl2.core.model_config import ModelConfig
from vl2.core.types import IMAGE_TAG


def read_json_object(path: Path) -> dict[str, Any]:
    """Raises: CheckpointError when the file is missing or holds no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is {path.parent} a complete DeepSeek-VL2 checkpoint?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, but must hold an object")
    return value


def check_processor_config(folder: Path, model_config: ModelConfig) -> None:
    """Check that processor_config.json asks for nothing else than what `vl2` does and config.json says.

    Absent keys mean the official defaults, which are the values required here.

    Raises: CheckpointError that names the key, its value and what is supported.
    """
    raw = read_json_object(folder / "processor_config.json")
    required = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "normalize": True,
        "image_token": IMAGE_TAG,
        "sft_format": "deepseek",
        "add_special_token": False,
        "candidate_resolutions": [list(size) for size in model_config.candidate_resolutions],
        "patch_size": model_config.vision.patch_size,
        "downsample_ratio": model_config.projector.downsample_ratio,
    }
    for key, value in required.items():
        if raw.get(key, value) != value:
            raise CheckpointError(
                f"processor_config.json: {key} is {raw[key]!r}, but vl2 needs {value!r} for this config.json"
            )
