"""The arithmetic of YaRN (arXiv:2309.00071) that does not touch a tensor."""

from __future__ import annotations

import math

from vl2.core.model_config import YarnConfig


def yarn_scale(factor: float, mscale: float) -> float:
    """g(m) = 0.1 · m · ln(factor) + 1."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def ramp(dim: int, theta: float, yarn: YarnConfig) -> tuple[int, float]:
    """(first, width): pairs of dimensions up to `first` keep their frequency, those from first + width on have it
    divided by the factor.
    """

    def pair_of(rotations: float) -> float:
        turns = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(theta))

    low = max(math.floor(pair_of(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_of(yarn.beta_slow)), dim - 1)
    return low, high - low if high != low else 0.001
