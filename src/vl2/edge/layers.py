"""Layers that the tower and the decoder share, as ONNX nodes. The residual stream is float32 in every precision."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from vl2.edge.graph import Graph

FLOAT16_MAX = 65504.0


def linear(g: Graph, x: str, name: str, weight: np.ndarray, bias: np.ndarray | None = None) -> str:
    """x [..., In] · weight [Out, In]ᵀ + bias, in the graph's precision."""
    if g.precision == "int8":
        product = _int8_product(g, x, name, weight)
    else:
        product = g.op("MatMul", x, g.weight(name, to_float(g, weight.T)))
    if bias is None:
        return product
    return g.op("Add", product, g.weight(f"{name}.bias", to_float(g, bias)))


def to_float(g: Graph, array: np.ndarray) -> np.ndarray:
    """In the graph's float type; what float16 cannot hold saturates."""
    if g.half:
        array = array.clip(-FLOAT16_MAX, FLOAT16_MAX)
    return array.astype(g.float_dtype)


def _int8_product(g: Graph, x: str, name: str, weight: np.ndarray) -> str:
    """Weights have a scale for each output, activations one that is found as they come.

    ONNX Runtime makes one node of this pattern.
    """
    values, scales = quantise_rows(weight)
    x_values, x_scale, x_zero = g.once("DynamicQuantizeLinear", 3, x)
    zero = g.scalar(0, np.int8)
    product = g.op("MatMulInteger", x_values, g.weight(name, values.T), x_zero, zero)
    scale = g.op("Mul", x_scale, g.weight(f"{name}.scale", scales))
    return g.op("Mul", g.cast(product, TensorProto.FLOAT), scale)


def quantise_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """weight [Out, In] → (int8 of the same shape, scales [Out] float32): symmetric, a row's largest is 127."""
    scales = np.maximum(np.abs(weight).max(axis=1), 1e-12) / 127
    return np.rint(weight / scales[:, None]).astype(np.int8), scales.astype(np.float32)


def saturate(g: Graph, x: str) -> str:
    """What overflows float16 becomes its largest number, as in the torch path."""
    return g.op("Clip", x, g.scalar(-FLOAT16_MAX), g.scalar(FLOAT16_MAX)) if g.half else x


def narrow(g: Graph, x: str) -> str:
    """float32 → what products are computed in."""
    return g.cast(x, TensorProto.FLOAT16) if g.half else x


def widen(g: Graph, x: str) -> str:
    """Back to float32."""
    return g.cast(x, TensorProto.FLOAT) if g.half else x


def rms_norm(g: Graph, x: str, name: str, weight: np.ndarray, eps: float) -> str:
    """x float32 → the normed rows, float32; ONNX Runtime makes one node of it."""
    mean = g.op("ReduceMean", g.op("Pow", x, g.scalar(2.0, np.float32)), g.ints(-1), keepdims=1)
    root = g.op("Sqrt", g.op("Add", mean, g.scalar(eps, np.float32)))
    return g.op("Mul", g.op("Div", x, root), g.weight(name, weight.astype(np.float32)))


def layer_norm(g: Graph, x: str, name: str, weight: np.ndarray, bias: np.ndarray, eps: float) -> str:
    """x float32 → the normed rows, float32."""
    parts = [
        g.weight(f"{name}.{part}", array.astype(np.float32)) for part, array in (("weight", weight), ("bias", bias))
    ]
    return g.op("LayerNormalization", x, *parts, axis=-1, epsilon=eps)


def swiglu(g: Graph, gate_up: str, inner: int) -> str:
    """silu(gate) · up, the halves of the last axis."""
    gate, up = g.split(gate_up, inner, inner)
    return saturate(g, g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up))


def mlp(g: Graph, x: str, name: str, gate_up: np.ndarray, down: np.ndarray) -> str:
    """down(swiglu(gate_up(x))). gate_up [2F, C], down [C, F]."""
    inner = swiglu(g, linear(g, x, f"{name}.gate_up", gate_up), down.shape[1])
    return saturate(g, linear(g, inner, f"{name}.down", down))


def softmax_over(g: Graph, scores: str, mask: str | None = None) -> str:
    """Over the last axis; `mask` is added to the scores."""
    return g.op("Softmax", scores if mask is None else g.op("Add", scores, mask), axis=-1)
