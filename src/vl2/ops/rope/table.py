"""Tables of rotary position embedding (arXiv:2104.09864).

They are built from integer positions in float32 and never cast: the official README's bfloat16 recipe rounds the
positions above 256 and so breaks long prompts (model-facts, quirk 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vl2.core.model_config import YarnConfig
from vl2.core.yarn import ramp, yarn_scale


@dataclass(frozen=True, slots=True)
class RopeTable:
    """cos, sin  [max positions, D/2] float32; one column a pair of dimensions."""

    cos: torch.Tensor
    sin: torch.Tensor

    def rows(self, positions: torch.Tensor) -> RopeTable:
        """The rows of a step's tokens. positions [T] int64 → tables [T, D/2]."""
        return RopeTable(self.cos.index_select(0, positions), self.sin.index_select(0, positions))


def rope_table(
    dim: int, num_positions: int, theta: float, yarn: YarnConfig | None, device: torch.device | str
) -> RopeTable:
    """Tables for `dim` rotated dimensions; with YaRN's ramped frequencies and magnitude where the config has it."""
    frequencies = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    magnitude = 1.0
    if yarn is not None:
        first, width = ramp(dim, theta, yarn)
        keep = 1.0 - ((torch.arange(dim // 2, dtype=torch.float32) - first) / width).clamp(0, 1)
        frequencies = frequencies / yarn.factor * (1.0 - keep) + frequencies * keep
        magnitude = yarn_scale(yarn.factor, yarn.mscale) / yarn_scale(yarn.factor, yarn.mscale_all_dim)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    return RopeTable((angles.cos() * magnitude).to(device), (angles.sin() * magnitude).to(device))
