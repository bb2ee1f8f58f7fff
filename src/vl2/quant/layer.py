"""One decoder layer: what its linears see, and their weights in few bits.

Linears are quantised in the order in which a token meets them, and what is behind already goes through quantised
weights. The layer is one of 16-bit weights throughout: quantised ones are written back as what they stand for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from vl2.core.quantization import Quantization
from vl2.model.attention import MHA, MLA
from vl2.model.decoder import DecoderLayer
from vl2.model.linear import Linear
from vl2.model.moe import MLP, MoE
from vl2.model.step import QueryRows, StepInputs
from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.quantized_weight.codes import dequantize_codes, pack_codes, round_to_nearest
from vl2.ops.rope.table import RopeTable
from vl2.ops.rows import RowRounding
from vl2.quant.gptq import Curvature, Hessian, quantize_matrix

log = logging.getLogger(__name__)

PAGE_SIZE = 16


@dataclass(frozen=True, slots=True)
class Method:
    """How weights are rounded. `scale_dtype` is the checkpoint's own."""

    name: str  # gptq or rtn
    plan: Quantization
    expert_floor: int  # an expert that saw fewer tokens is rounded to nearest
    scale_dtype: torch.dtype


@dataclass(slots=True)
class Inputs:
    """Hidden states of all samples before a layer; afterwards, in their place, those behind it."""

    hidden: list[torch.Tensor]  # [T, C] each
    weights: list[torch.Tensor]  # [T] float32: how much a token counts
    rope: RopeTable
    pool: torch.Tensor  # the cache of one layer, of the longest sample


@dataclass(slots=True)
class QuantizedLayer:
    """What a layer's shard gets in place of 16-bit weights."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)  # official names of the weights that these tensors stand for
    tokens_per_expert: list[int] = field(default_factory=list)
    rounded_experts: list[int] = field(default_factory=list)  # that saw too few tokens


@dataclass(frozen=True, slots=True)
class Site:
    """A matrix of ours: official linears, below the layer's name, stacked along the output."""

    parts: dict[str, int]  # {name: output width}
    weight: torch.Tensor  # [Σ N, K]


def whole_prompt(num_tokens: int, device: torch.device) -> StepInputs:
    """One sequence in one step, its pages in order."""
    rows = torch.arange(num_tokens, device=device)
    tables = torch.arange(-(-num_tokens // PAGE_SIZE), dtype=torch.int32, device=device)[None]
    queries = QueryRows(None, AttentionBatch.of([ChunkShape(0, num_tokens, num_tokens)], tables))
    return StepInputs(rows, rows, rows, queries, queries, num_tokens, rows[:0], rows[:0], RowRounding())


@torch.no_grad()
def run_layer(layer: DecoderLayer, inputs: Inputs) -> None:
    """Take the samples through a layer."""
    _add(inputs, _run_attention(layer, inputs))
    _add(inputs, [layer.mlp(layer.mlp_norm(x)) for x in inputs.hidden])


@torch.no_grad()
def quantize_layer(
    layer: DecoderLayer, prefix: str, inputs: Inputs, method: Method, on_linear: Callable[[], None]
) -> QuantizedLayer:
    """Quantise what the plan says, and take the samples through. `prefix`: language.model.layers.N."""
    work = _Work(prefix, inputs, method, on_linear)
    for stage in _attention_stages(layer.attention):
        work.quantize_linears(stage, lambda see: _run_attention(layer, inputs, see))
    _add(inputs, _run_attention(layer, inputs))
    normed = [layer.mlp_norm(x) for x in inputs.hidden]
    if isinstance(layer.mlp, MoE):
        _quantize_experts(layer.mlp, normed, work)
    else:
        _quantize_mlp(layer.mlp, "mlp", normed, work)
    _add(inputs, [layer.mlp(x) for x in normed])
    return work.done


See = Callable[[int], None]
"""Told the number of a sample before it is run."""


def _see_nothing(_: int) -> None:
    pass


def _add(inputs: Inputs, deltas: list[torch.Tensor]) -> None:
    inputs.hidden = [x + delta for x, delta in zip(inputs.hidden, deltas, strict=True)]


def _run_attention(layer: DecoderLayer, inputs: Inputs, see: See = _see_nothing) -> list[torch.Tensor]:
    results = []
    for number, x in enumerate(inputs.hidden):
        see(number)
        step = whole_prompt(len(x), x.device)
        attended = layer.attention(layer.attention_norm(x), step, step.queries, inputs.rope, inputs.pool)
        results.append(layer.attention.o_proj(attended))
    return results


def _attention_stages(attention: nn.Module) -> Iterator[dict[nn.Module, dict[str, int]]]:
    """Linears that are given the same, or do not depend on each other: {linear: {official name: output width}}."""
    if isinstance(attention, MHA):
        widths = {"q": attention.heads, "k": attention.kv_heads, "v": attention.kv_heads}
        yield {attention.qkv: {f"self_attn.{part}_proj": heads * attention.head_dim for part, heads in widths.items()}}
    else:
        assert isinstance(attention, MLA)
        has_rank = attention.config.q_lora_rank is not None
        query = attention.q_a if has_rank else attention.q_proj
        yield {
            query: _whole("self_attn.q_a_proj" if has_rank else "self_attn.q_proj", query),
            attention.kv_a: _whole("self_attn.kv_a_proj_with_mqa", attention.kv_a),
        }
        if has_rank:
            yield {attention.q_b: _whole("self_attn.q_b_proj", attention.q_b)}
    yield {attention.o_proj: _whole("self_attn.o_proj", attention.o_proj)}


def _whole(name: str, linear: nn.Module) -> dict[str, int]:
    assert isinstance(linear, Linear)
    return {name: len(linear.weight)}


def _quantize_mlp(mlp: MLP, name: str, normed: list[torch.Tensor], work: _Work) -> None:
    def run(see: See) -> None:
        for number, x in enumerate(normed):
            see(number)
            mlp(x)

    work.quantize_linears({mlp.gate_up: {f"{name}.gate_proj": mlp.inner, f"{name}.up_proj": mlp.inner}}, run)
    work.quantize_linears({mlp.down: _whole(f"{name}.down_proj", mlp.down)}, run)


def _quantize_experts(moe: MoE, normed: list[torch.Tensor], work: _Work) -> None:
    """Each expert on the tokens that chose it, one after the other: one Hessian is held at a time.

    A token counts by the square of the weight that the router gave it, as its error does.
    """
    if moe.shared is not None:
        _quantize_mlp(moe.shared, "mlp.shared_experts", normed, work)
    if work.method.name == "rtn":
        for expert in range(moe.config.num_experts):
            for site in _expert_sites(moe, expert):
                work.quantize(site, None)
        return
    rows, row_weights = torch.cat(normed), torch.cat(work.inputs.weights)
    ids, routing = moe.ops.route(rows, moe.router, moe.router_bias, moe.config)
    floor = work.method.expert_floor
    for expert in range(moe.config.num_experts):
        token, choice = (ids == expert).nonzero(as_tuple=True)
        x, weights = rows[token], row_weights[token] * routing[token, choice].square()
        is_seen = len(token) >= floor
        work.done.tokens_per_expert.append(len(token))
        gate_up, down = _expert_sites(moe, expert)
        work.quantize(gate_up, _curvature(x, weights) if is_seen else None)
        hidden = moe.ops.swiglu(F.linear(x, gate_up.weight))
        work.quantize(down, _curvature(hidden, weights) if is_seen else None)
        if not is_seen:
            work.done.rounded_experts.append(expert)
    if work.done.rounded_experts:
        log.warning(
            "%s: experts %s saw fewer than %d tokens and were rounded to nearest; calibrate on more, or more varied, "
            "pictures and texts",
            work.prefix,
            ", ".join(map(str, work.done.rounded_experts)),
            floor,
        )


def _expert_sites(moe: MoE, expert: int) -> tuple[Site, Site]:
    name, inner, down = f"mlp.experts.{expert}", moe.config.expert_width, moe.down[expert]
    gate_up = Site({f"{name}.gate_proj": inner, f"{name}.up_proj": inner}, moe.gate_up[expert])
    return gate_up, Site({f"{name}.down_proj": len(down)}, down)


def _curvature(x: torch.Tensor, weights: torch.Tensor) -> Curvature:
    hessian = Hessian(x.shape[1], x.device)
    hessian.add(x, weights)
    return hessian.curvature()


class _Work:
    """Quantises matrices and collects what becomes of them."""

    def __init__(self, prefix: str, inputs: Inputs, method: Method, on_linear: Callable[[], None]) -> None:
        self.prefix, self.inputs, self.method, self.on_linear = prefix, inputs, method, on_linear
        self.done = QuantizedLayer()

    def quantize_linears(self, linears: dict[nn.Module, dict[str, int]], run: Callable[[See], object]) -> None:
        """Run all samples, watch what these linears are given, and quantise them."""
        matrices: dict[nn.Module, torch.Tensor] = {
            linear: linear.weight for linear in linears if isinstance(linear, Linear)
        }
        curvatures: dict[nn.Module, Curvature] = {}
        if self.method.name == "gptq":
            watch = _Watch(self.inputs.weights)
            hessians = {linear: watch.start(linear, matrix) for linear, matrix in matrices.items()}
            run(watch.see)
            watch.stop()
            curvatures = {linear: hessian.curvature() for linear, hessian in hessians.items()}
        for linear, parts in linears.items():
            self.quantize(Site(parts, matrices[linear]), curvatures.get(linear))

    def quantize(self, site: Site, curvature: Curvature | None) -> None:
        """In place. No curvature: to nearest."""
        for (name, _), part in zip(site.parts.items(), site.weight.split(list(site.parts.values())), strict=True):
            linear = f"{self.prefix}.{name}"
            scheme = self.method.plan.scheme_of(linear)
            if scheme is not None:
                dtype = self.method.scale_dtype
                rounded = (
                    round_to_nearest(part, scheme, dtype)
                    if curvature is None
                    else quantize_matrix(part, curvature, scheme, dtype)
                )
                part.copy_(dequantize_codes(*rounded))
                self.done.tensors |= packed_tensors(linear, *rounded, scheme.bits)
                self.done.replaced.add(f"{linear}.weight")
            self.on_linear()


class _Watch:
    """Adds up the Hessians of linears while samples are run."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        self.weights, self.number = weights, 0
        self.hooks: list[torch.utils.hooks.RemovableHandle] = []

    def see(self, number: int) -> None:
        self.number = number

    def start(self, linear: nn.Module, matrix: torch.Tensor) -> Hessian:
        hessian = Hessian(matrix.shape[1], matrix.device)

        def on_inputs(_: nn.Module, arguments: tuple[torch.Tensor]) -> None:
            hessian.add(arguments[0], self.weights[self.number])

        self.hooks.append(linear.register_forward_pre_hook(on_inputs))
        return hessian

    def stop(self) -> None:
        for hook in self.hooks:
            hook.remove()


def packed_tensors(linear: str, codes: torch.Tensor, scales: torch.Tensor, bits: int) -> dict[str, torch.Tensor]:
    """A linear in compressed-tensors' `pack-quantized` form."""
    return {
        f"{linear}.weight_packed": pack_codes(codes, bits).cpu(),
        f"{linear}.weight_scale": scales.cpu(),
        f"{linear}.weight_shape": torch.tensor(codes.shape, dtype=torch.int64),
    }
