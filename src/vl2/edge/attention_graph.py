"""The decoder's attentions as ONNX nodes. Each writes this step's rows into the cache, then reads the whole context.

The cache of a layer is one matrix, a row a token: MHA keys and values of all heads, MLA the latent and the rotated key.
Rows are written with ScatterND, which ONNX Runtime does in place where input and output are bound to the same memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vl2.core.model_config import LanguageConfig, MLAConfig
from vl2.edge.cache_layout import cache_width
from vl2.edge.graph import Graph
from vl2.edge.layers import linear, narrow, rms_norm, softmax_over, to_float, widen
from vl2.edge.rope import yarn_scale
from vl2.edge.weights import Weights

INNER_NORM_EPS = 1e-6
"""Of MLA's two inner norms, whatever rms_norm_eps says (official code)."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The tokens that queries are computed for: all of a step's, or in the last layer those whose logits are wanted."""

    idx: str | None  # [Q] int64; None: all
    cos: str  # [Q, 1, D/2] float32
    sin: str
    mask: str  # [Q, P]: -inf where a position of the context comes after the row's own

    def take(self, g: Graph, x: str) -> str:
        return x if self.idx is None else g.take(x, self.idx)


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers of a step share. T tokens of one sequence, P tokens of context with them."""

    cos: str  # [T, 1, D/2] float32
    sin: str
    new_slots: str  # [T, 1] int64: rows of the cache that this step writes
    context_slots: str  # [P] int64: rows of the context, in order
    is_prompt: str  # bool: whether MLA shall take the latent rows out (see `mla`); "" for MHA
    rows: Rows
    last_rows: Rows


def attend(
    g: Graph, weights: Weights, name: str, x: str, step: Step, rows: Rows, layer: int, config: LanguageConfig
) -> str:
    """x [T, C] → [Q, C] in the graph's float type."""
    cache = g.input(f"cache.{layer}", g.float_type, ("S", cache_width(config)))
    attention = mla if config.mla else mha
    return attention(g, weights, f"{name}.self_attn", x, step, rows, cache, layer, config)


def _write(g: Graph, cache: str, new: str, step: Step, layer: int, config: LanguageConfig) -> str:
    """Store this step's rows; gives the context's rows [P, W]."""
    written = g.op("ScatterND", cache, step.new_slots, new)
    written = g.output(written, f"cache_out.{layer}", g.float_type, ("S", cache_width(config)))
    return g.take(written, step.context_slots)


def mha(
    g: Graph,
    weights: Weights,
    name: str,
    x: str,
    step: Step,
    rows: Rows,
    cache: str,
    layer: int,
    config: LanguageConfig,
) -> str:
    """Llama's attention; the scale is in the weights of the queries."""
    heads, kv_heads, dim, width = config.heads, config.kv_heads, config.head_dim, config.hidden_size

    def project(part: str, num: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray | None]:
        bias = weights.get(f"{name}.{part}_proj.bias", num * dim) if config.has_attention_bias else None
        return scale * weights.get(
            f"{name}.{part}_proj.weight", num * dim, width
        ), None if bias is None else scale * bias

    key_weight, key_bias = project("k", kv_heads)
    value_weight, value_bias = project("v", kv_heads)
    kv_bias = None if key_bias is None or value_bias is None else np.concatenate((key_bias, value_bias))
    kv = linear(g, x, f"{name}.kv", np.concatenate((key_weight, value_weight)), kv_bias)
    keys, values = g.split(kv, kv_heads * dim, kv_heads * dim)
    keys = g.reshape(rotate(g, g.reshape(keys, 0, kv_heads, dim), step.cos, step.sin, dim), 0, kv_heads * dim)
    context = _write(g, cache, g.concat(keys, values), step, layer, config)
    q = linear(g, rows.take(g, x), f"{name}.q", *project("q", heads, dim**-0.5))
    q = rotate(g, g.reshape(q, 0, heads, dim), rows.cos, rows.sin, dim)
    keys, values = (g.reshape(part, 0, kv_heads, 1, dim) for part in g.split(context, kv_heads * dim, kv_heads * dim))
    # [K, H/K, Q, D] · [K, 1, D, P]
    q = g.transpose(g.reshape(q, 0, kv_heads, heads // kv_heads, dim), 1, 2, 0, 3)
    scores = g.op("MatMul", q, g.transpose(keys, 1, 2, 3, 0))
    out = g.op("MatMul", softmax_over(g, scores, rows.mask), g.transpose(values, 1, 2, 0, 3))
    out = g.reshape(g.transpose(out, 2, 0, 1, 3), 0, heads * dim)
    return _output(g, weights, name, out, heads * dim, config)


def mla(
    g: Graph,
    weights: Weights,
    name: str,
    x: str,
    step: Step,
    rows: Rows,
    cache: str,
    layer: int,
    config: LanguageConfig,
) -> str:
    """Multi-head latent attention, in both of its forms: absorbed for a few rows, where heads read the latent rows
    themselves; expanded for a prompt, where each head's keys and values are made of them first.
    """
    m = config.mla
    assert m is not None
    rank, rope, nope, heads = m.kv_lora_rank, m.rope_dim, m.nope_dim, config.heads
    joint = _rope_last(weights.get(f"{name}.kv_a_proj_with_mqa.weight", rank + rope, config.hidden_size), rank, rope)
    bias = weights.get(f"{name}.kv_a_proj_with_mqa.bias", rank + rope) if config.has_attention_bias else None
    new = linear(g, x, f"{name}.kv_a", joint, None if bias is None else _rope_last(bias[:, None], rank, rope)[:, 0])
    latent, key = g.split(new, rank, rope)
    norm = weights.get(f"{name}.kv_a_layernorm.weight", rank)
    latent = narrow(g, rms_norm(g, widen(g, latent), f"{name}.kv_norm", norm, INNER_NORM_EPS))
    key = g.reshape(rotate(g, g.reshape(key, 0, 1, rope), step.cos, step.sin, rope), 0, rope)
    context = _write(g, cache, g.concat(latent, key), step, layer, config)
    q = _mla_queries(g, weights, name, rows.take(g, x), config, m)
    plain, turned = g.split(q, nope, rope)
    turned = g.transpose(rotate(g, turned, rows.cos, rows.sin, rope), 1, 0, 2)
    kv_b = weights.get(f"{name}.kv_b_proj.weight", heads * (nope + m.value_dim), rank)
    inputs = _MLAInputs(context, g.transpose(plain, 1, 0, 2), turned, rows.mask)
    forms = _MLAForms(g, name, kv_b, m, heads, inputs)
    out = g.either(step.is_prompt, forms.expanded, forms.absorbed, g.float_type)  # [H, Q, Dv]
    out = g.reshape(g.transpose(out, 1, 0, 2), 0, heads * m.value_dim)
    return _output(g, weights, name, out, heads * m.value_dim, config)


def expands_from(m: MLAConfig) -> int:
    """Query rows from which on taking the latent rows out costs less than reading them as they are."""
    saved = (2 * m.kv_lora_rank + m.rope_dim) - (m.nope_dim + m.rope_dim + m.value_dim)  # a pair of query and position
    once = m.kv_lora_rank * (m.nope_dim + m.value_dim)  # a position
    return max(2, once // saved) if saved > 0 else 2**31


def _mla_queries(g: Graph, weights: Weights, name: str, x: str, config: LanguageConfig, m: MLAConfig) -> str:
    """[Q, H, Dn + Dr], scaled by way of the weights."""
    scale = (m.nope_dim + m.rope_dim) ** -0.5
    if config.yarn is not None and config.yarn.mscale_all_dim:
        scale *= yarn_scale(config.yarn.factor, config.yarn.mscale_all_dim) ** 2
    size, width, rank = m.nope_dim + m.rope_dim, config.hidden_size, m.q_lora_rank
    if rank is not None:
        bias = weights.get(f"{name}.q_a_proj.bias", rank) if config.has_attention_bias else None
        low = linear(g, x, f"{name}.q_a", weights.get(f"{name}.q_a_proj.weight", rank, width), bias)
        norm = weights.get(f"{name}.q_a_layernorm.weight", rank)
        x = narrow(g, rms_norm(g, widen(g, low), f"{name}.q_norm", norm, INNER_NORM_EPS))
    part, wide_in = ("q_proj", width) if rank is None else ("q_b_proj", rank)
    weight = scale * weights.get(f"{name}.{part}.weight", config.heads * size, wide_in)
    per_head = [_rope_last(head, m.nope_dim, m.rope_dim) for head in weight.reshape(config.heads, size, wide_in)]
    return g.reshape(linear(g, x, f"{name}.q", np.concatenate(per_head)), 0, config.heads, size)


@dataclass(frozen=True, slots=True)
class _MLAInputs:
    context: str  # [P, R + Dr]
    plain: str  # [H, Q, Dn]: the part of the queries that is not rotated
    turned: str  # [H, Q, Dr]: the rotated one
    mask: str  # [Q, P]


class _MLAForms:
    """The two ways of computing the same, as branches of one node."""

    def __init__(self, g: Graph, name: str, kv_b: np.ndarray, shape: MLAConfig, heads: int, inputs: _MLAInputs) -> None:
        """kv_b [H · (Dn + Dv), R]: of each head its key rows, then its value rows."""
        self.g, self.name, self.kv_b, self.shape, self.heads, self.inputs = g, name, kv_b, shape, heads, inputs
        per_head = kv_b.reshape(heads, shape.nope_dim + shape.value_dim, shape.kv_lora_rank)
        self.key_half = g.weight(f"{name}.kv_b.keys", to_float(g, per_head[:, : shape.nope_dim]))  # [H, Dn, R]
        values = per_head[:, shape.nope_dim :].transpose(0, 2, 1)
        self.value_half = g.weight(f"{name}.kv_b.values", to_float(g, values))  # [H, R, Dv]

    def absorbed(self) -> str:
        """Queries go into the latent space, what they saw comes out of it: [H, Q, Dv]."""
        g, inputs = self.g, self.inputs
        queries = g.concat(g.op("MatMul", inputs.plain, self.key_half), inputs.turned)  # [H, Q, R + Dr]
        scores = g.op("MatMul", queries, g.transpose(inputs.context, 1, 0))
        latent = g.split(inputs.context, self.shape.kv_lora_rank, self.shape.rope_dim)[0]
        return g.op("MatMul", g.op("MatMul", softmax_over(g, scores, inputs.mask), latent), self.value_half)

    def expanded(self) -> str:
        """The context comes out of the latent space first: [H, Q, Dv]."""
        g, inputs, shape, heads = self.g, self.inputs, self.shape, self.heads
        latent, key = g.split(inputs.context, shape.kv_lora_rank, shape.rope_dim)
        per_head = g.reshape(
            linear(g, latent, f"{self.name}.kv_b", self.kv_b), 0, heads, shape.nope_dim + shape.value_dim
        )
        keys, values = g.split(per_head, shape.nope_dim, shape.value_dim)  # [P, H, ...]
        shared = g.op("Expand", g.reshape(key, 0, 1, shape.rope_dim), g.ints(1, heads, 1))
        keys = g.transpose(g.concat(keys, shared), 1, 2, 0)  # [H, Dn + Dr, P]
        scores = g.op("MatMul", g.concat(inputs.plain, inputs.turned), keys)
        return g.op("MatMul", softmax_over(g, scores, inputs.mask), g.transpose(values, 1, 0, 2))


def _output(g: Graph, weights: Weights, name: str, x: str, wide_in: int, config: LanguageConfig) -> str:
    width = config.hidden_size
    bias = weights.get(f"{name}.o_proj.bias", width) if config.has_attention_bias else None
    return linear(g, x, f"{name}.o_proj", weights.get(f"{name}.o_proj.weight", width, wide_in), bias)


def _rope_last(weight: np.ndarray, plain: int, rope: int) -> np.ndarray:
    """MLA pairs rotated outputs 2i and 2i + 1. Their rows are sorted so that i is paired with i + Dr/2, as in MHA: the
    order does not matter as long as it is the same for queries and keys.
    """
    order = [*range(plain), *range(plain, plain + rope, 2), *range(plain + 1, plain + rope, 2)]
    return weight[order]


def rotate(g: Graph, x: str, cos: str, sin: str, dim: int) -> str:
    """x [T, H, D], cos and sin [T, 1, D/2] → [T, H, D], computed in float32."""
    first, second = g.split(widen(g, x), dim // 2, dim // 2)
    turned_first = g.op("Sub", g.op("Mul", first, cos), g.op("Mul", second, sin))
    turned_second = g.op("Add", g.op("Mul", second, cos), g.op("Mul", first, sin))
    return narrow(g, g.concat(turned_first, turned_second))
