"""Feed-forward layers: the dense SwiGLU and DeepSeekMoE (arXiv:2401.06066)."""

from __future__ import annotations

import torch
from torch import nn

from vl2.core.model_config import MoEConfig
from vl2.model.linear import Linear, empty
from vl2.ops.activation import silu
from vl2.ops.experts import routed_experts
from vl2.ops.gate import route
from vl2.ops.rows import RowRounding
from vl2.ops.saturate import saturate, to_dtype


class MLP(nn.Module):
    """down(silu(gate(x)) · up(x)); gate and up are one GEMM."""

    def __init__(self, width: int, inner: int, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * inner, dtype=dtype, device=device)
        self.down = Linear(inner, width, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(saturate(silu(gate) * up))


class MoE(nn.Module):
    """Routed experts, weighted and summed in float32, plus shared experts that see every token."""

    def __init__(self, width: int, config: MoEConfig, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.config = config
        experts, inner = config.num_experts, config.expert_width
        self.router = empty(experts, width, dtype=torch.float32, device=device)
        has_bias = config.topk_method == "noaux_tc"
        self.router_bias = empty(experts, dtype=torch.float32, device=device) if has_bias else None
        self.gate_up = empty(experts, 2 * inner, width, dtype=dtype, device=device)
        self.down = empty(experts, width, inner, dtype=dtype, device=device)
        self.shared = MLP(width, config.shared_width, dtype=dtype, device=device) if config.shared_width else None

    def forward(self, x: torch.Tensor, rounding: RowRounding = RowRounding()) -> torch.Tensor:
        """[T, C] → [T, C]."""
        ids, weights = route(x, self.router, self.router_bias, self.config)
        out = routed_experts(x, ids, weights, self.gate_up, self.down, rounding)
        if self.shared is not None:
            out = out + self.shared(x).float()
        return to_dtype(out, x.dtype)
