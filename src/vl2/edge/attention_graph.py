"""What the decoder's two attentions have in common, as ONNX nodes.

Each writes this step's rows into the cache, then reads the whole context. The cache of a layer is one matrix, a row a
token: MHA keys and values of all heads, MLA the latent and the rotated key. Rows are written with ScatterND, which ONNX
Runtime does in place where input and output are bound to the same memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vl2.core.model_config import LanguageConfig
from vl2.edge.cache_layout import cache_width
from vl2.edge.graph import Graph
from vl2.edge.layers import linear, narrow, widen
from vl2.edge.weights import Weights


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


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """One layer's attention in the making."""

    g: Graph
    weights: Weights
    name: str  # official, up to self_attn
    layer: int
    config: LanguageConfig
    step: Step
    rows: Rows

    def weight(self, part: str, wide_out: int, wide_in: int) -> np.ndarray:
        return self.weights.get(f"{self.name}.{part}.weight", wide_out, wide_in)

    def bias(self, part: str, wide_out: int) -> np.ndarray | None:
        """Of the linears that have one where config.json says so."""
        return self.weights.get(f"{self.name}.{part}.bias", wide_out) if self.config.has_attention_bias else None

    def norm(self, part: str, width: int) -> np.ndarray:
        return self.weights.get(f"{self.name}.{part}.weight", width)

    def remember(self, new: str) -> str:
        """Store this step's rows [T, W] in the cache; gives the context's rows [P, W]."""
        g, dims = self.g, ("S", cache_width(self.config))
        cache = g.input(f"cache.{self.layer}", g.float_type, dims)
        written = g.op("ScatterND", cache, self.step.new_slots, new)
        return g.take(g.output(written, f"cache_out.{self.layer}", g.float_type, dims), self.step.context_slots)

    def output(self, heads: str, wide_in: int) -> str:
        """heads [Q, H · Dv] → [Q, C]."""
        width = self.config.hidden_size
        weight, bias = self.weight("o_proj", width, wide_in), self.bias("o_proj", width)
        return linear(self.g, heads, f"{self.name}.o_proj", weight, bias)


def rotate(g: Graph, x: str, cos: str, sin: str, dim: int) -> str:
    """x [T, H, D], cos and sin [T, 1, D/2] → [T, H, D], computed in float32."""
    first, second = g.split(widen(g, x), dim // 2, dim // 2)
    turned_first = g.op("Sub", g.op("Mul", first, cos), g.op("Mul", second, sin))
    turned_second = g.op("Add", g.op("Mul", second, cos), g.op("Mul", first, sin))
    return narrow(g, g.concat(turned_first, turned_second))
