"""Rotary position embedding (arXiv:2104.09864), in the two pairings that DeepSeek-VL2 uses.

Tables are built from integer positions in float32 and never cast: the official README's bfloat16 recipe rounds the
positions above 256 and so breaks long prompts (model-facts, quirk 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from vl2.core.model_config import YarnConfig
from vl2.ops.saturate import to_dtype


@dataclass(frozen=True, slots=True)
class RopeTable:
    """cos, sin  [max positions, D/2] float32; one column a pair of dimensions."""

    cos: torch.Tensor
    sin: torch.Tensor

    def rows(self, positions: torch.Tensor) -> RopeTable:
        """The rows of a step's tokens. positions [T] int64 → tables [T, D/2]."""
        return RopeTable(self.cos[positions], self.sin[positions])


def rope_table(
    dim: int, num_positions: int, theta: float, yarn: YarnConfig | None, device: torch.device | str
) -> RopeTable:
    """Tables for `dim` rotated dimensions; with YaRN's ramped frequencies and magnitude where the config has it."""
    frequencies = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    magnitude = 1.0
    if yarn is not None:
        keep = 1.0 - _yarn_ramp(dim, theta, yarn)
        frequencies = frequencies / yarn.factor * (1.0 - keep) + frequencies * keep
        magnitude = yarn_scale(yarn.factor, yarn.mscale) / yarn_scale(yarn.factor, yarn.mscale_all_dim)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    return RopeTable((angles.cos() * magnitude).to(device), (angles.sin() * magnitude).to(device))


def yarn_scale(factor: float, mscale: float) -> float:
    """g(m) = 0.1 · m · ln(factor) + 1 of YaRN (arXiv:2309.00071)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_ramp(dim: int, theta: float, yarn: YarnConfig) -> torch.Tensor:
    """[dim/2]: 0 where a frequency is kept (fast), 1 where it is divided by the factor (slow)."""

    def pair_of(rotations: float) -> float:
        turns = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(theta))

    low = max(math.floor(pair_of(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_of(yarn.beta_slow)), dim - 1)
    width = high - low if high != low else 0.001
    return ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)


def rotate_halves(x: torch.Tensor, table: RopeTable) -> torch.Tensor:
    """MHA (Llama's pairing): dimension i is paired with i + D/2.

    x [T, H, D]; table rows [T, D/2] → [T, H, D] in x's dtype, computed in float32.
    """
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = table.cos[:, None], table.sin[:, None]
    return to_dtype(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1), x.dtype)


def rotate_pairs(x: torch.Tensor, table: RopeTable) -> torch.Tensor:
    """MLA: dimensions 2i and 2i+1 are a pair.

    The official code first moves even dimensions to the front; only the order in the result differs, alike for queries
    and keys, so their products are the same. x [T, H, D]; table rows [T, D/2] → [T, H, D] in x's dtype.
    """
    wide = x.float()
    partner = wide.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    cos = table.cos.repeat_interleave(2, -1)[:, None]
    sin = torch.stack((-table.sin, table.sin), dim=-1).flatten(-2)[:, None]
    return to_dtype(wide * cos + partner * sin, x.dtype)
