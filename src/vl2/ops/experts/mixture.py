"""What a token's experts say, not added up yet: the norm that comes next does that in passing."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Mixture:
    """Σ weight · result in the router's order, then the results of weight 1, then `shared`; added up in float32."""

    results: torch.Tensor  # [T · (A + S), C] of each token's pairs
    weights: torch.Tensor  # [T, A] float32
    shared: torch.Tensor | None = None  # [T, C]

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def num_active(self) -> int:
        """Results of a token."""
        return len(self.results) // len(self.weights)


def add_up(out: torch.Tensor | Mixture) -> torch.Tensor:
    """[T, C] of the results' dtype."""
    if isinstance(out, torch.Tensor):
        return out
    from vl2.ops.experts.kernel_common import weighted_sum  # here: kernels alone leave it to others

    return weighted_sum(out)
