"""Feed-forward layers: the dense SwiGLU and DeepSeekMoE (arXiv:2401.06066)."""

from __future__ import annotations

import functools

import torch
from torch import nn

from vl2.core.model_config import MoEConfig
from vl2.core.quantization import WeightScheme
from vl2.model.linear import Linear, Place, RMSNorm, empty, empty_quantized
from vl2.ops.backend import Backend
from vl2.ops.experts.mixture import Mixture, add_up
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.native.matrices import ExpertMatrices
from vl2.ops.quantized_experts.weights import QuantizedExperts
from vl2.ops.quantized_weight.weight import QuantizedWeight
from vl2.ops.rows import RowRounding, pad_rows
from vl2.ops.saturate import saturate


class MLP(nn.Module):
    """down(silu(gate(x)) · up(x)); gate and up are one GEMM."""

    def __init__(
        self,
        width: int,
        inner: int,
        ops: Backend,
        place: Place = Place(),
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        self.ops, self.inner = ops, inner
        parts = {"gate_proj": inner, "up_proj": inner}
        self.gate_up = place.linear(width, parts, ops, dtype=dtype, device=device)
        self.down = place.linear(inner, {"down_proj": width}, ops, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.ops.swiglu(self.gate_up(x)))


class MoE(nn.Module):
    """Routed experts, weighted and summed in float32, plus shared experts that see every token."""

    def __init__(
        self,
        width: int,
        config: MoEConfig,
        ops: Backend,
        place: Place = Place(),
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        self.router = empty(config.num_experts, width, dtype=torch.float32, device=device)
        has_bias = config.topk_method == "noaux_tc"
        self.router_bias = empty(config.num_experts, dtype=torch.float32, device=device) if has_bias else None
        self.shared: MLP | None = None
        self.described: ExpertMatrices | None = None  # set when weights are packed (model/packing.py)
        self._add_experts(width, place, dtype, device)

    def _add_experts(self, width: int, place: Place, dtype: torch.dtype, device: torch.device | str) -> None:
        experts, inner = self.config.num_experts, self.config.expert_width
        self.gate_up = empty(experts, 2 * inner, width, dtype=dtype, device=device)
        self.down = empty(experts, width, inner, dtype=dtype, device=device)
        if self.config.shared_width:
            shared = place.at("shared_experts")
            self.shared = MLP(width, self.config.shared_width, self.ops, shared, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor, rounding: RowRounding = RowRounding()) -> torch.Tensor:
        """[T, C] → [T, C]."""
        return add_up(self.mix(x, *self.route(x, rounding), rounding))

    def mix(
        self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, rounding: RowRounding
    ) -> torch.Tensor | Mixture:
        """What the chosen experts say, and the shared ones; added up or not."""
        experts, is_apart = self.expert_weights
        out = self.ops.mix_experts(x, ids, weights, experts, rounding)
        return self.add_apart(out, x) if is_apart else out

    def add_apart(self, out: torch.Tensor | Mixture, x: torch.Tensor) -> torch.Tensor | Mixture:
        """With what shared experts say that run apart."""
        return out if self.shared is None else saturate(add_up(out) + self.shared(x))

    def norm_and_mix(
        self, norm: RMSNorm, x: torch.Tensor, delta: torch.Tensor | None, num_rows: int | None, rounding: RowRounding
    ) -> tuple[torch.Tensor, torch.Tensor | Mixture]:
        """x + delta; of its first `num_rows` rows what experts say to their norm. Rows that only fill up a step would
        choose some, too."""
        router = self.router, self.router_bias, self.config
        if self.ops.norm_and_mix is not None and delta is not None and len(x) == 1:
            experts, is_apart = self.asked_experts
            x, normed, out = self.ops.norm_and_mix(x, delta, norm.weight, norm.eps, *router, experts)
            return x, self.add_apart(out, normed) if is_apart else out
        if self.ops.norm_and_route is not None and delta is not None:
            x, normed, ids, weights = self.ops.norm_and_route(x, delta, norm.weight, norm.eps, *router)
            return x, self.mix(normed[:num_rows], ids[:num_rows], weights[:num_rows], rounding)
        x, normed = norm.add(x, delta)
        return x, self.mix(normed[:num_rows], *self.route(normed[:num_rows], rounding), rounding)

    def route(self, x: torch.Tensor, rounding: RowRounding) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Backend.route`, in as many rows as its product with the router must have."""
        rows = pad_rows(x, rounding.up(len(x)))
        ids, weights = self.ops.route(rows, self.router, self.router_bias, self.config)
        return ids[: len(x)], weights[: len(x)]

    @property
    def asked_experts(self) -> tuple[ExpertWeights | QuantizedExperts, bool]:
        """All of them, in 16 bits or not, and whether the shared ones run apart."""
        return self.expert_weights

    @property
    def expert_weights(self) -> tuple[ExpertWeights, bool]:
        """All of them, and whether the shared ones run apart, as they are quantised."""
        if self.shared is None:
            return ExpertWeights(self.gate_up, self.down, None, None, self.described), False
        gate_up, down = self.shared.gate_up, self.shared.down
        if isinstance(gate_up, Linear) and isinstance(down, Linear):
            return ExpertWeights(self.gate_up, self.down, gate_up.weight, down.weight, self.described), False
        return ExpertWeights(self.gate_up, self.down, None, None, self.described), True

    @property
    def routed_bytes(self) -> int:
        """Of all routed experts' weights."""
        return self.gate_up.nbytes + self.down.nbytes


class QuantizedMoE(MoE):
    """MoE whose experts are in few bits. Shared ones that are quantised alike are further experts of the routed ones'
    width; others run beside."""

    def _add_experts(self, width: int, place: Place, dtype: torch.dtype, device: torch.device | str) -> None:
        config, ops, inner = self.config, self.ops, self.config.expert_width
        schemes = expert_schemes(width, config, ops, place)
        assert schemes is not None
        self.schemes, self.inner = schemes, inner
        shared = place.at("shared_experts")
        own = (
            shared.scheme(["gate_proj", "up_proj"], ops, inner, width),
            shared.scheme(["down_proj"], ops, width, inner),
        )
        is_joined = own == schemes and config.shared_width % inner == 0
        self.num_shared = config.shared_width // inner if is_joined else 0
        if config.shared_width and not is_joined:
            self.shared = MLP(width, config.shared_width, ops, shared, dtype=dtype, device=device)
        total = config.num_experts + self.num_shared
        up_shape, down_shape = (total, 2 * inner, width), (total, width, inner)
        self.gate_up_codes, self.gate_up_scales = empty_quantized(up_shape, schemes[0], ops, dtype=dtype, device=device)
        self.down_codes, self.down_scales = empty_quantized(down_shape, schemes[1], ops, dtype=dtype, device=device)
        self.width = width

    def mix(
        self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, rounding: RowRounding
    ) -> torch.Tensor | Mixture:
        """As of a `MoE`."""
        return self.add_apart(self.ops.mix_quantized_experts(x, ids, weights, self.experts, rounding), x)

    @property
    def asked_experts(self) -> tuple[ExpertWeights | QuantizedExperts, bool]:
        """As of a `MoE`."""
        return self.experts, self.shared is not None

    @property
    def num_weights(self) -> int:
        codes = self.gate_up_codes, self.down_codes
        return sum(part.nbytes * 8 // scheme.bits for part, scheme in zip(codes, self.schemes, strict=True))

    @functools.cached_property
    def experts(self) -> QuantizedExperts:
        up_scheme, down_scheme = self.schemes
        return QuantizedExperts(
            QuantizedWeight(self.gate_up_codes, self.gate_up_scales, up_scheme, self.width),
            QuantizedWeight(self.down_codes, self.down_scales, down_scheme, self.inner),
            self.num_shared,
        )

    @property
    def routed_bytes(self) -> int:
        """Of all routed experts' weights."""
        own = self.gate_up_codes, self.gate_up_scales, self.down_codes, self.down_scales
        num_routed = self.config.num_experts
        return sum(parameter.nbytes for parameter in own) * num_routed // (num_routed + self.num_shared)


def expert_schemes(
    width: int, config: MoEConfig, ops: Backend, place: Place
) -> tuple[WeightScheme, WeightScheme] | None:
    """Of gate and up, and of down; None: the experts are in 16 bits, or not all alike."""

    def names(*parts: str) -> list[str]:
        return [f"experts.{expert}.{part}_proj" for expert in range(config.num_experts) for part in parts]

    up = place.scheme(names("gate", "up"), ops, config.expert_width, width)
    down = place.scheme(names("down"), ops, width, config.expert_width)
    return None if up is None or down is None else (up, down)


def make_moe(
    width: int,
    config: MoEConfig,
    ops: Backend,
    place: Place = Place(),
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> MoE:
    """As the checkpoint holds the experts."""
    kind = MoE if expert_schemes(width, config, ops, place) is None else QuantizedMoE
    return kind(width, config, ops, place, dtype=dtype, device=device)
