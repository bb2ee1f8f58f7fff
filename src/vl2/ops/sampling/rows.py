"""How each row of a step's logits is to be sampled; tensors, so that a CUDA graph can hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True, slots=True)
class SamplingRows:
    temperatures: torch.Tensor  # [L] float32; 0: the best token
    top_ks: torch.Tensor  # [L] int32; 0: all
    top_ps: torch.Tensor  # [L] float32
    min_ps: torch.Tensor  # [L] float32
    uniforms: torch.Tensor  # [L] float32 in [0, 1): the draw

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> SamplingRows:
        """From tensors under the fields' names, among others."""
        return cls(*(tensors[field.name] for field in fields(cls)))

    def take(self, rows: torch.Tensor) -> SamplingRows:
        return SamplingRows(
            self.temperatures[rows], self.top_ks[rows], self.top_ps[rows], self.min_ps[rows], self.uniforms[rows]
        )
