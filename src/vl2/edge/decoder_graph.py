"""The token embedding and one step of the decoder. `model/decoder.py` tells what is computed.

A step is T tokens of one sequence: a prompt, a part of one, or the token that was generated last.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from vl2.core.model_config import LanguageConfig
from vl2.edge.attention_graph import AttentionLayer, Rows, Step
from vl2.edge.graph import Graph
from vl2.edge.layers import linear, mlp, narrow, quantise_rows, rms_norm, to_float, widen
from vl2.edge.mha_graph import mha
from vl2.edge.mla_graph import expands_from, mla
from vl2.edge.moe_graph import moe
from vl2.edge.rope import rope_tables
from vl2.edge.weights import Weights


def build_embedding(g: Graph, weights: Weights, config: LanguageConfig) -> None:
    """ids [T] int64 → embeds [T, C] float32. Two ids more than the vocabulary has: V is the end of a row of picture
    tokens (image_newline), V + 1 stands between a picture's views (view_seperator).
    """
    width = config.hidden_size
    table = weights.get("language.model.embed_tokens.weight", config.vocab_size, width)
    extra = [weights.get(name, width) for name in ("image_newline", "view_seperator")]  # sic
    table = np.concatenate((table, np.stack(extra)))
    ids = g.input("ids", TensorProto.INT64, ("T",))
    if g.precision == "int8":
        values, scales = quantise_rows(table)
        rows = g.cast(g.take(g.weight("table", values), ids), TensorProto.FLOAT)
        embeds = g.op("Mul", rows, g.take(g.weight("scales", scales[:, None]), ids))
    else:
        embeds = widen(g, g.take(g.weight("table", to_float(g, table)), ids))
    g.output(embeds, "embeds", TensorProto.FLOAT, ("T", width))


def build_decoder(g: Graph, weights: Weights, config: LanguageConfig) -> None:
    """What goes in and comes out:

    embeds         [T, C] float32       of this step's tokens
    positions      [T] int64
    new_slots      [T] int64            rows of the caches that these tokens are written to
    context_slots  [P] int64            rows of all tokens up to the last of these, in order
    logit_rows     [L] int64            tokens whose logits are wanted
    cache.I        [S, W]               layer I's cache (see attention_graph.py)
    → logits       [L, V] float32
    → cache_out.I  [S, W]               the same with the new rows; may be the same memory
    """
    width = config.hidden_size
    x = g.input("embeds", TensorProto.FLOAT, ("T", width))
    step = _step(g, config)
    for layer in range(config.layers):
        rows = step.last_rows if layer == config.layers - 1 else step.rows
        x = _layer(g, weights, layer, x, step, rows, config)
    x = narrow(g, _norm(g, weights, "language.model.norm", x, config))
    head = weights.get("language.lm_head.weight", config.vocab_size, width)
    g.output(widen(g, linear(g, x, "lm_head", head)), "logits", TensorProto.FLOAT, ("L", config.vocab_size))


def _step(g: Graph, config: LanguageConfig) -> Step:
    positions = g.input("positions", TensorProto.INT64, ("T",))
    new_slots = g.input("new_slots", TensorProto.INT64, ("T",))
    context_slots = g.input("context_slots", TensorProto.INT64, ("P",))
    logit_rows = g.input("logit_rows", TensorProto.INT64, ("L",))
    cos, sin = (
        g.op("Unsqueeze", g.take(g.weight(f"rope.{name}", table), positions), g.ints(1))
        for name, table in zip(("cos", "sin"), rope_tables(config), strict=True)
    )
    mask = _mask(g, positions, context_slots)
    is_prompt = ""
    if config.mla is not None:
        is_prompt = g.op("Greater", g.length(positions), g.ints(expands_from(config.mla)))
    return Step(
        cos=cos,
        sin=sin,
        new_slots=g.op("Unsqueeze", new_slots, g.ints(1)),
        context_slots=context_slots,
        is_prompt=is_prompt,
        rows=Rows(None, cos, sin, mask),
        last_rows=Rows(logit_rows, *(g.take(x, logit_rows) for x in (cos, sin, mask))),
    )


def _mask(g: Graph, positions: str, context_slots: str) -> str:
    """[T, P]: 0 up to a token's own position, -inf behind it; the context begins at position 0."""
    num_positions = g.op("Squeeze", g.length(context_slots))
    zero, one = g.scalar(0, np.int64), g.scalar(1, np.int64)
    later = g.op("Greater", g.op("Range", zero, num_positions, one), g.op("Unsqueeze", positions, g.ints(1)))
    return g.op("Where", later, g.scalar(-np.inf), g.scalar(0.0))


def _layer(g: Graph, weights: Weights, layer: int, x: str, step: Step, rows: Rows, config: LanguageConfig) -> str:
    """Pre-norm: x += attention(norm(x)); x += feed_forward(norm(x)). x [T, C] → [Q, C], float32."""
    name, width = f"language.model.layers.{layer}", config.hidden_size
    normed = narrow(g, _norm(g, weights, f"{name}.input_layernorm", x, config))
    attention = AttentionLayer(g, weights, f"{name}.self_attn", layer, config, step, rows)
    attended = (mla if config.mla else mha)(attention, normed)
    x = g.op("Add", rows.take(g, x), widen(g, attended))
    normed = _norm(g, weights, f"{name}.post_attention_layernorm", x, config)
    if config.is_moe_layer(layer):
        assert config.moe is not None
        return g.op("Add", x, moe(g, weights, f"{name}.mlp", normed, config.moe, width))
    inner = config.dense_width
    gate_up = weights.stacked([f"{name}.mlp.gate_proj.weight", f"{name}.mlp.up_proj.weight"], inner, width)
    down = weights.get(f"{name}.mlp.down_proj.weight", width, inner)
    return g.op("Add", x, widen(g, mlp(g, narrow(g, normed), f"{name}.mlp", gate_up, down)))


def _norm(g: Graph, weights: Weights, name: str, x: str, config: LanguageConfig) -> str:
    return rms_norm(g, x, name, weights.get(f"{name}.weight", config.hidden_size), config.rms_norm_eps)
