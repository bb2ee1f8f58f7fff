"""Tables of rotary embedding in numpy; `ops/rope/table.py` tells the same to torch."""

from __future__ import annotations

import numpy as np

from vl2.core.model_config import LanguageConfig
from vl2.core.yarn import ramp, yarn_scale


def rope_tables(config: LanguageConfig) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin) [max positions, D/2] float32 of the dimensions that are rotated."""
    dim = config.mla.rope_dim if config.mla else config.head_dim
    frequencies = 1.0 / np.float32(config.rope_theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    magnitude = 1.0
    yarn = config.yarn
    if yarn is not None:
        first, width = ramp(dim, config.rope_theta, yarn)
        keep = 1.0 - ((np.arange(dim // 2, dtype=np.float32) - first) / width).clip(0, 1)
        frequencies = frequencies / yarn.factor * (1.0 - keep) + frequencies * keep
        magnitude = yarn_scale(yarn.factor, yarn.mscale) / yarn_scale(yarn.factor, yarn.mscale_all_dim)
    positions = np.arange(config.max_position_embeddings, dtype=np.float32)
    angles = np.outer(positions, frequencies.astype(np.float32))
    return (np.cos(angles) * magnitude).astype(np.float32), (np.sin(angles) * magnitude).astype(np.float32)
