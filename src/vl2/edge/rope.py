"""Tables of rotary embedding in numpy; `ops/rope/table.py` tells the same to torch."""

from __future__ import annotations

import math

import numpy as np

from vl2.core.model_config import LanguageConfig, YarnConfig


def rope_tables(config: LanguageConfig) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin) [max positions, D/2] float32 of the dimensions that are rotated."""
    dim = config.mla.rope_dim if config.mla else config.head_dim
    frequencies = 1.0 / np.float32(config.rope_theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    magnitude = 1.0
    yarn = config.yarn
    if yarn is not None:
        keep = 1.0 - _ramp(dim, config.rope_theta, yarn)
        frequencies = frequencies / yarn.factor * (1.0 - keep) + frequencies * keep
        magnitude = yarn_scale(yarn.factor, yarn.mscale) / yarn_scale(yarn.factor, yarn.mscale_all_dim)
    positions = np.arange(config.max_position_embeddings, dtype=np.float32)
    angles = np.outer(positions, frequencies.astype(np.float32))
    return tuple((f(angles) * magnitude).astype(np.float32) for f in (np.cos, np.sin))  # type: ignore[return-value]


def yarn_scale(factor: float, mscale: float) -> float:
    """g(m) = 0.1 · m · ln(factor) + 1 of YaRN (arXiv:2309.00071)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _ramp(dim: int, theta: float, yarn: YarnConfig) -> np.ndarray:
    """[dim/2]: 0 where a frequency is kept, 1 where it is divided by the factor."""

    def pair_of(rotations: float) -> float:
        turns = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(theta))

    low = max(math.floor(pair_of(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_of(yarn.beta_slow)), dim - 1)
    width = high - low if high != low else 0.001
    return ((np.arange(dim // 2, dtype=np.float32) - low) / width).clip(0, 1)
