"""Llama's attention (Tiny) as ONNX nodes; the scale is in the weights of the queries."""

from __future__ import annotations

import numpy as np

from vl2.edge.attention_graph import AttentionLayer, rotate
from vl2.edge.layers import linear, softmax_over


def mha(a: AttentionLayer, x: str) -> str:
    """x [T, C] → [Q, C] in the graph's float type."""
    g, rows, step = a.g, a.rows, a.step
    heads, kv_heads, dim = a.config.heads, a.config.kv_heads, a.config.head_dim
    kv_width = kv_heads * dim
    keys, values = g.split(linear(g, x, f"{a.name}.kv", *_keys_and_values(a)), kv_width, kv_width)
    keys = g.reshape(rotate(g, g.reshape(keys, 0, kv_heads, dim), step.cos, step.sin, dim), 0, kv_width)
    context = a.remember(g.concat(keys, values))
    q = linear(g, rows.take(g, x), f"{a.name}.q", *_queries(a))
    q = rotate(g, g.reshape(q, 0, heads, dim), rows.cos, rows.sin, dim)
    keys, values = (g.reshape(part, 0, kv_heads, 1, dim) for part in g.split(context, kv_width, kv_width))
    # [K, H/K, Q, D] · [K, 1, D, P]
    q = g.transpose(g.reshape(q, 0, kv_heads, heads // kv_heads, dim), 1, 2, 0, 3)
    scores = g.op("MatMul", q, g.transpose(keys, 1, 2, 3, 0))
    out = g.op("MatMul", softmax_over(g, scores, rows.mask), g.transpose(values, 1, 2, 0, 3))
    return a.output(g.reshape(g.transpose(out, 2, 0, 1, 3), 0, heads * dim), heads * dim)


def _keys_and_values(a: AttentionLayer) -> tuple[np.ndarray, np.ndarray | None]:
    """As one linear."""
    wide_out, width = a.config.kv_heads * a.config.head_dim, a.config.hidden_size
    weight = np.concatenate([a.weight(part, wide_out, width) for part in ("k_proj", "v_proj")])
    biases = [bias for part in ("k_proj", "v_proj") if (bias := a.bias(part, wide_out)) is not None]
    return weight, np.concatenate(biases) if biases else None


def _queries(a: AttentionLayer) -> tuple[np.ndarray, np.ndarray | None]:
    wide_out, scale = a.config.heads * a.config.head_dim, a.config.head_dim**-0.5
    bias = a.bias("q_proj", wide_out)
    return scale * a.weight("q_proj", wide_out, a.config.hidden_size), None if bias is None else scale * bias
