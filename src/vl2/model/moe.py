"""Feed-forward layers: the dense SwiGLU and DeepSeekMoE (arXiv:2401.06066)."""

from __future__ import annotations

import torch
from torch import nn

from vl2.core.model_config import MoEConfig
from vl2.model.linear import Linear, empty
from vl2.ops.backend import Backend
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.rows import RowRounding


class MLP(nn.Module):
    """down(silu(gate(x)) · up(x)); gate and up are one GEMM."""

    def __init__(self, width: int, inner: int, ops: Backend, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.ops = ops
        self.gate_up = Linear(width, 2 * inner, dtype=dtype, device=device)
        self.down = Linear(inner, width, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.ops.swiglu(self.gate_up(x)))


class MoE(nn.Module):
    """Routed experts, weighted and summed in float32, plus shared experts that see every token."""

    def __init__(
        self, width: int, config: MoEConfig, ops: Backend, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        experts, inner = config.num_experts, config.expert_width
        self.router = empty(experts, width, dtype=torch.float32, device=device)
        has_bias = config.topk_method == "noaux_tc"
        self.router_bias = empty(experts, dtype=torch.float32, device=device) if has_bias else None
        self.gate_up = empty(experts, 2 * inner, width, dtype=dtype, device=device)
        self.down = empty(experts, width, inner, dtype=dtype, device=device)
        self.shared = MLP(width, config.shared_width, ops, dtype=dtype, device=device) if config.shared_width else None

    def forward(self, x: torch.Tensor, rounding: RowRounding = RowRounding()) -> torch.Tensor:
        """[T, C] → [T, C]."""
        ids, weights = self.ops.route(x, self.router, self.router_bias, self.config)
        return self.ops.mix_experts(x, ids, weights, self.expert_weights, rounding)

    @property
    def expert_weights(self) -> ExpertWeights:
        shared = self.shared
        return ExpertWeights(
            self.gate_up, self.down, shared.gate_up.weight if shared else None, shared.down.weight if shared else None
        )
