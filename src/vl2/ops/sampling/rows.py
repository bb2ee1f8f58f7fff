"""How each row of a step's logits is to be sampled; tensors, so that a CUDA graph can hold them."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class SamplingRows:
    temperatures: torch.Tensor  # [L] float32; 0: the best token
    top_ks: torch.Tensor  # [L] int32; 0: all
    top_ps: torch.Tensor  # [L] float32
    min_ps: torch.Tensor  # [L] float32
    uniforms: torch.Tensor  # [L] float32 in [0, 1): the draw

    def take(self, rows: torch.Tensor) -> SamplingRows:
        return SamplingRows(
            self.temperatures[rows], self.top_ks[rows], self.top_ps[rows], self.min_ps[rows], self.uniforms[rows]
        )
