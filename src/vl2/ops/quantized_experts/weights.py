"""The quantised weights of one MoE layer's experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from vl2.ops.quantized_weight.weight import QuantizedWeight


@dataclass(frozen=True, slots=True)
class QuantizedExperts:
    """Shared experts are further experts of the routed ones' width F, which every token takes with weight 1."""

    gate_up: QuantizedWeight  # [E + S, 2F, C]: gate rows, then up rows
    down: QuantizedWeight  # [E + S, C, F]
    num_shared: int  # S

    def with_shared(self, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and weights [T, A] → [T, A + S]: every token's shared experts are its last choices, of weight 1."""
        if not self.num_shared:
            return ids, weights
        num_experts = len(self.gate_up.codes)
        shared = torch.arange(num_experts - self.num_shared, num_experts, dtype=ids.dtype, device=ids.device)
        return torch.cat((ids, shared.expand(len(ids), -1)), 1), F.pad(weights, (0, self.num_shared), value=1.0)
