"""A MoE layer as standard ONNX nodes. `ops/gate/reference.py` and `ops/experts/reference.py` tell what is computed.

Tokens are sorted by expert and cut into one piece an expert. An expert that no token chose gets a piece of no rows, and
its products are skipped: only active experts' weights are read, and no control flow is needed.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from vl2.core.model_config import MoEConfig
from vl2.edge.graph import Graph
from vl2.edge.layers import mlp, narrow, softmax_over, widen
from vl2.edge.weights import Weights

NORM_EPS = 1e-20


def moe(g: Graph, weights: Weights, name: str, x: str, config: MoEConfig, width: int) -> str:
    """x [T, C] float32 → [T, C] float32: the routed experts' weighted sum, and the shared experts' result."""
    ids, shares = gate(g, weights, f"{name}.gate", x, config, width)
    rows = narrow(g, x)
    out = _routed(g, weights, name, rows, ids, shares, config, width)
    if config.shared_width:
        shared = _expert(g, weights, f"{name}.shared_experts", rows, config.shared_width, width)
        out = g.op("Add", out, widen(g, shared))
    return out


def gate(g: Graph, weights: Weights, name: str, x: str, config: MoEConfig, width: int) -> tuple[str, str]:
    """x [T, C] float32 → (ids [T, A] int64, weights [T, A] float32), in float32 throughout."""
    router = weights.get(f"{name}.weight", config.num_experts, width)
    logits = g.op("MatMul", x, g.weight(name, router.T))
    scores = softmax_over(g, logits) if config.scoring_func == "softmax" else g.op("Sigmoid", logits)
    choice = scores
    if config.topk_method == "noaux_tc":
        bias = weights.get(f"{name}.e_score_correction_bias", config.num_experts)
        choice = g.op("Add", scores, g.weight(f"{name}.bias", bias))
    if config.topk_method != "greedy" and config.num_groups > 1:
        choice = _of_best_groups(g, choice, config)
    ids = _top(g, choice, config.num_active)[1]
    shares = g.op("GatherElements", scores, ids, axis=1)
    if config.norm_topk_prob and config.num_active > 1:
        total = g.op("ReduceSum", shares, g.ints(-1), keepdims=1)
        shares = g.op("Div", shares, g.op("Add", total, g.scalar(NORM_EPS, np.float32)))
    if config.routed_scaling_factor != 1.0:
        shares = g.op("Mul", shares, g.scalar(config.routed_scaling_factor, np.float32))
    return ids, shares


def _of_best_groups(g: Graph, choice: str, config: MoEConfig) -> str:
    """Scores of the other groups become 0.0 (not -inf), as in the official code. [T, E] → [T, E]."""
    groups = g.reshape(choice, 0, config.num_groups, config.num_experts // config.num_groups)
    if config.topk_method == "noaux_tc":
        group_scores = g.op("ReduceSum", _top(g, groups, 2)[0], g.ints(-1), keepdims=0)
    else:
        group_scores = g.op("ReduceMax", groups, g.ints(-1), keepdims=0)
    best = _top(g, group_scores, config.num_active_groups)[1]
    chosen = g.op("ReduceSum", _one_hot(g, best, config.num_groups), g.ints(1), keepdims=1)  # [T, 1, groups]
    kept = g.op("Mul", groups, g.cast(g.transpose(chosen, 0, 2, 1), TensorProto.FLOAT))
    return g.reshape(kept, 0, config.num_experts)


def _top(g: Graph, x: str, k: int) -> list[str]:
    """(values, ids) of the k largest, best first; equal ones by id."""
    return g.ops("TopK", 2, x, g.ints(k), axis=-1)


def _one_hot(g: Graph, ids: str, depth: int) -> str:
    """[...] → [..., depth] int64."""
    return g.op("OneHot", ids, g.ints(depth), g.ints(0, 1), axis=-1)


def _routed(g: Graph, weights: Weights, name: str, x: str, ids: str, shares: str, config: MoEConfig, width: int) -> str:
    """Σ_a shares[t, a] · expert_ids[t, a](x[t]): [T, C] float32."""
    active, experts = config.num_active, config.num_experts
    flat = g.reshape(ids, -1)
    order = _order(g, flat)
    inverse = _order(g, order)
    counts = g.op("ReduceSum", _one_hot(g, flat, experts), g.ints(0), keepdims=0)
    tokens = g.op("Div", order, g.ints(active))
    pieces = g.ops("Split", experts, g.take(x, tokens), counts, axis=0)
    results = [
        _expert(g, weights, f"{name}.experts.{expert}", piece, config.expert_width, width)
        for expert, piece in enumerate(pieces)
    ]
    joined = widen(g, g.take(g.concat(*results, axis=0), inverse))
    weighted = g.op("Mul", g.reshape(joined, -1, active, width), g.op("Unsqueeze", shares, g.ints(-1)))
    return g.op("ReduceSum", weighted, g.ints(1), keepdims=0)


def _order(g: Graph, values: str) -> str:
    """Indices that sort a vector of integers; equal ones keep their order."""
    return g.ops("TopK", 2, values, g.length(values), axis=0, largest=0)[1]


def _expert(g: Graph, weights: Weights, name: str, x: str, inner: int, width: int) -> str:
    gate_up = weights.stacked([f"{name}.gate_proj.weight", f"{name}.up_proj.weight"], inner, width)
    return mlp(g, x, name, gate_up, weights.get(f"{name}.down_proj.weight", width, inner))
