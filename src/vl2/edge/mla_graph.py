"""Multi-head latent attention (Small, base) as ONNX nodes, in both of its forms.

Absorbed, heads read the latent rows themselves; expanded, each head's keys and values are made of them first. A few
rows, as of one token, take the first form, a prompt the second: one graph holds both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vl2.core.model_config import LanguageConfig, MLAConfig
from vl2.core.yarn import yarn_scale
from vl2.edge.attention_graph import AttentionLayer, rotate
from vl2.edge.graph import Graph
from vl2.edge.layers import linear, narrow, rms_norm, softmax_over, to_float, widen

INNER_NORM_EPS = 1e-6
"""Of MLA's two inner norms, whatever rms_norm_eps says (official code)."""


def expands_from(m: MLAConfig) -> int:
    """Query rows from which on taking the latent rows out costs less than reading them as they are."""
    saved = (2 * m.kv_lora_rank + m.rope_dim) - (m.nope_dim + m.rope_dim + m.value_dim)  # a pair of query and position
    once = m.kv_lora_rank * (m.nope_dim + m.value_dim)  # a position
    return max(2, once // saved) if saved > 0 else 2**31


def mla(a: AttentionLayer, x: str) -> str:
    """x [T, C] → [Q, C] in the graph's float type; the scale is in the weights of the queries."""
    g, m, rows, heads = a.g, a.config.mla, a.rows, a.config.heads
    assert m is not None
    context = a.remember(_latent_and_key(a, x, m))
    plain, turned = g.split(_queries(a, rows.take(g, x), m), m.nope_dim, m.rope_dim)
    turned = rotate(g, turned, rows.cos, rows.sin, m.rope_dim)
    inputs = _Inputs(context, g.transpose(plain, 1, 0, 2), g.transpose(turned, 1, 0, 2), rows.mask)
    kv_b = a.weight("kv_b_proj", heads * (m.nope_dim + m.value_dim), m.kv_lora_rank)
    forms = _Forms(g, a.name, kv_b, m, heads, inputs)
    out = g.either(a.step.is_prompt, forms.expanded, forms.absorbed, g.float_type)  # [H, Q, Dv]
    wide = heads * m.value_dim
    return a.output(g.reshape(g.transpose(out, 1, 0, 2), 0, wide), wide)


def _latent_and_key(a: AttentionLayer, x: str, m: MLAConfig) -> str:
    """What the cache keeps of each token: [T, R + Dr]."""
    g, rank, rope, part = a.g, m.kv_lora_rank, m.rope_dim, "kv_a_proj_with_mqa"
    weight, bias = a.weight(part, rank + rope, a.config.hidden_size), a.bias(part, rank + rope)
    order = _halves_last(rank, rope)
    both = linear(g, x, f"{a.name}.kv_a", weight[order], None if bias is None else bias[order])
    latent, key = g.split(both, rank, rope)
    norm = a.norm("kv_a_layernorm", rank)
    latent = narrow(g, rms_norm(g, widen(g, latent), f"{a.name}.kv_norm", norm, INNER_NORM_EPS))
    key = rotate(g, g.reshape(key, 0, 1, rope), a.step.cos, a.step.sin, rope)
    return g.concat(latent, g.reshape(key, 0, rope))


def _queries(a: AttentionLayer, x: str, m: MLAConfig) -> str:
    """[Q, H, Dn + Dr], not rotated."""
    g, heads, size, wide_in, part = a.g, a.config.heads, m.nope_dim + m.rope_dim, a.config.hidden_size, "q_proj"
    if m.q_lora_rank is not None:
        low = linear(
            g, x, f"{a.name}.q_a", a.weight("q_a_proj", m.q_lora_rank, wide_in), a.bias("q_a_proj", m.q_lora_rank)
        )
        norm = a.norm("q_a_layernorm", m.q_lora_rank)
        x = narrow(g, rms_norm(g, widen(g, low), f"{a.name}.q_norm", norm, INNER_NORM_EPS))
        wide_in, part = m.q_lora_rank, "q_b_proj"
    weight = _scale(a.config, m) * a.weight(part, heads * size, wide_in)
    weight = weight.reshape(heads, size, wide_in)[:, _halves_last(m.nope_dim, m.rope_dim)]
    return g.reshape(linear(g, x, f"{a.name}.q", weight.reshape(heads * size, wide_in)), 0, heads, size)


def _scale(config: LanguageConfig, m: MLAConfig) -> float:
    scale: float = (m.nope_dim + m.rope_dim) ** -0.5
    if config.yarn is not None and config.yarn.mscale_all_dim:
        scale *= yarn_scale(config.yarn.factor, config.yarn.mscale_all_dim) ** 2
    return scale


def _halves_last(plain: int, rope: int) -> list[int]:
    """MLA pairs the rotated outputs 2i and 2i + 1. Sorted so, i is paired with i + Dr/2, as in MHA: the order does not
    matter as long as it is the same for queries and keys.
    """
    return [*range(plain), *range(plain, plain + rope, 2), *range(plain + 1, plain + rope, 2)]


@dataclass(frozen=True, slots=True)
class _Inputs:
    context: str  # [P, R + Dr]
    plain: str  # [H, Q, Dn]: the part of the queries that is not rotated
    turned: str  # [H, Q, Dr]: the rotated one
    mask: str  # [Q, P]


class _Forms:
    """The two ways of computing the same, as branches of one node."""

    def __init__(self, g: Graph, name: str, kv_b: np.ndarray, shape: MLAConfig, heads: int, inputs: _Inputs) -> None:
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
