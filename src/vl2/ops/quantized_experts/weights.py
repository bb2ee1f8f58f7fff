"""The quantised weights of one MoE layer's experts."""

from __future__ import annotations

from dataclasses import dataclass

from vl2.ops.quantized_weight.weight import QuantizedWeight


@dataclass(frozen=True, slots=True)
class QuantizedExperts:
    """Shared experts are further experts of the routed ones' width F, which every token takes with weight 1."""

    gate_up: QuantizedWeight  # [E + S, 2F, C]: gate rows, then up rows
    down: QuantizedWeight  # [E + S, C, F]
    num_shared: int  # S
