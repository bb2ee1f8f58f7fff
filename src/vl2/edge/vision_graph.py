"""The SigLIP tower and the projector: tiles → features. `model/vision.py` and `model/projector.py` say what they do."""

from __future__ import annotations

import itertools

import numpy as np
from onnx import TensorProto

from vl2.core.model_config import ModelConfig, ProjectorConfig, VisionConfig
from vl2.edge.graph import Graph
from vl2.edge.layers import layer_norm, linear, narrow, softmax_over, widen
from vl2.edge.weights import Weights

NORM_EPS = 1e-6
PIXEL_SCALE = 127.5
"""x / 127.5 - 1 is (x / 255 - 0.5) / 0.5."""


def build_vision(g: Graph, weights: Weights, config: ModelConfig) -> None:
    """tiles [N, side, side, 3] uint8 → features [N, Q, C] float32."""
    vision, side = config.vision, config.tile_geometry.side
    tiles = g.input("tiles", TensorProto.UINT8, ("N", side, side, 3))
    patches = narrow(g, _patches(g, tiles, vision))
    x = widen(g, linear(g, patches, "patch_embed", *_patch_embedding(weights, vision)))
    position = weights.get("vision.pos_embed", 1, vision.grid**2, vision.width)
    x = g.op("Add", x, g.weight("pos_embed", position))
    for layer in range(vision.layers):
        x = _block(g, weights, f"vision.blocks.{layer}", x, vision)
    x = _norm(g, weights, "vision.norm", x, vision.width)
    features = _projector(g, weights, x, vision.grid, config.projector)
    tokens, width = config.tile_geometry.tokens_per_tile, config.projector.n_embed
    g.output(widen(g, features), "features", TensorProto.FLOAT, ("N", tokens, width))


def _patches(g: Graph, tiles: str, vision: VisionConfig) -> str:
    """Pixels as rows of a matrix, [N, patches, P · P · 3]. The remainder that fills no patch is dropped."""
    grid, size = vision.grid, vision.patch_size
    used = grid * size
    pixels = g.cast(tiles, TensorProto.FLOAT)  # at once: TensorRT takes bytes as an input and for nothing else
    pixels = g.op("Slice", pixels, g.ints(0, 0), g.ints(used, used), g.ints(1, 2))
    pixels = g.op("Div", pixels, g.scalar(PIXEL_SCALE, np.float32))
    pixels = g.op("Sub", pixels, g.scalar(1.0, np.float32))
    rows = g.transpose(g.reshape(pixels, -1, grid, size, grid, size * 3), 0, 1, 3, 2, 4)
    return g.reshape(rows, -1, grid * grid, size * size * 3)


def _patch_embedding(weights: Weights, vision: VisionConfig) -> tuple[np.ndarray, np.ndarray]:
    """The convolution as a matrix for rows in the order (y, x, colour)."""
    size, width = vision.patch_size, vision.width
    kernel = weights.get("vision.patch_embed.proj.weight", width, 3, size, size)
    return kernel.transpose(0, 2, 3, 1).reshape(width, -1), weights.get("vision.patch_embed.proj.bias", width)


def _block(g: Graph, weights: Weights, name: str, x: str, vision: VisionConfig) -> str:
    width, inner = vision.width, vision.mlp_width
    normed = narrow(g, _norm(g, weights, f"{name}.norm1", x, width))
    attended = _attention(g, weights, f"{name}.attn", normed, vision)
    x = g.op("Add", x, widen(g, attended))
    normed = narrow(g, _norm(g, weights, f"{name}.norm2", x, width))
    hidden = g.op("Gelu", _linear(g, weights, f"{name}.mlp.fc1", normed, width, inner), approximate="tanh")
    return g.op("Add", x, widen(g, _linear(g, weights, f"{name}.mlp.fc2", hidden, inner, width)))


def _attention(g: Graph, weights: Weights, name: str, x: str, vision: VisionConfig) -> str:
    """x [N, patches, W]; full attention inside a tile. The scale is in the weights of the queries."""
    width, heads, size = vision.width, vision.heads, vision.head_dim
    weight, bias = weights.get(f"{name}.qkv.weight", 3 * width, width), weights.get(f"{name}.qkv.bias", 3 * width)
    weight[:width] *= size**-0.5
    bias[:width] *= size**-0.5
    parts = g.split(linear(g, x, f"{name}.qkv", weight, bias), width, width, width)
    q, k, v = (g.reshape(part, 0, 0, heads, size) for part in parts)
    scores = g.op("MatMul", g.transpose(q, 0, 2, 1, 3), g.transpose(k, 0, 2, 3, 1))
    heads_out = g.op("MatMul", softmax_over(g, scores), g.transpose(v, 0, 2, 1, 3))
    merged = g.reshape(g.transpose(heads_out, 0, 2, 1, 3), 0, 0, width)
    return _linear(g, weights, f"{name}.proj", merged, width, width)


def _projector(g: Graph, weights: Weights, x: str, grid: int, config: ProjectorConfig) -> str:
    """r × r patches become one token; here GELU is the exact one."""
    ratio, width = config.downsample_ratio, config.input_dim
    out_grid = -(-grid // ratio)
    missing = out_grid * ratio - grid
    squares = g.reshape(x, -1, grid, grid, width)
    if missing:
        squares = g.op("Pad", squares, g.ints(0, 0, 0, 0, 0, missing, missing, 0))
    blocks = g.transpose(g.reshape(squares, -1, out_grid, ratio, out_grid, ratio * width), 0, 1, 3, 2, 4)
    x = narrow(g, g.reshape(blocks, -1, out_grid**2, ratio**2 * width))
    hidden = config.n_embed * config.mlp_ratio
    widths = [width * ratio**2, *[hidden] * (config.depth - 1), config.n_embed]
    for idx, (wide_in, wide_out) in enumerate(itertools.pairwise(widths)):
        name = f"projector.layers.{2 * idx}"
        weight = weights.get(f"{name}.weight", wide_out, wide_in)
        if idx == 0:  # columns are (channel, dy, dx) in the file, (dy, dx, channel) here
            weight = weight.reshape(wide_out, width, ratio**2).transpose(0, 2, 1).reshape(wide_out, wide_in)
        else:
            x = g.op("Gelu", x)
        x = linear(g, x, name, weight, weights.get(f"{name}.bias", wide_out))
    return x


def _linear(g: Graph, weights: Weights, name: str, x: str, wide_in: int, wide_out: int) -> str:
    weight = weights.get(f"{name}.weight", wide_out, wide_in)
    return linear(g, x, name, weight, weights.get(f"{name}.bias", wide_out))


def _norm(g: Graph, weights: Weights, name: str, x: str, width: int) -> str:
    return layer_norm(g, x, name, weights.get(f"{name}.weight", width), weights.get(f"{name}.bias", width), NORM_EPS)
