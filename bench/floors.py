"""The least time that a card can take: bytes over its measured copy bandwidth, FLOPs over its measured matmul rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vl2.core.model_config import LanguageConfig, ModelConfig
from vl2.engine.runner import Runner
from vl2.model.kv_pool import kv_bytes_per_token
from vl2.model.moe import MoE
from vl2.ops.float8.support import has_float8
from vl2.ops.saturate import FLOAT8


@dataclass(frozen=True)
class Card:
    name: str
    bytes_per_s: float  # read + written by a large copy
    flops_per_s: float  # bf16, 8192³
    float8_per_s: float  # fp8 with a scale for each row, 8192³; that of bf16 where there is none

    @classmethod
    def measure(cls) -> Card:
        from triton.testing import do_bench  # a CPU needs the formulas alone

        source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        copy_ms = do_bench(lambda: target.copy_(source), return_mode="median")
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        matmul_ms = do_bench(lambda: a @ b, return_mode="median")
        name = torch.cuda.get_device_name()
        flops = 2 * 8192**3 * 1e3
        float8_ms = do_bench(_float8_product(a, b), return_mode="median") if has_float8(a.device) else matmul_ms
        return cls(name, 2 * source.nbytes / copy_ms * 1e3, flops / matmul_ms, flops / float8_ms)


def _float8_product(a: torch.Tensor, b: torch.Tensor) -> Callable[[], torch.Tensor]:
    x, y, ones = a.to(FLOAT8), b.to(FLOAT8), torch.ones(len(a), 1, device=a.device)
    return lambda: torch._scaled_mm(x, y.t(), ones, ones.t(), out_dtype=a.dtype, use_fast_accum=False)


def decode_bytes(runner: Runner, batch: int, context: int, experts_per_layer: float) -> float:
    """Bytes that one decoding step must read: every weight that it uses once, and the cache of its contexts.

    experts_per_layer: distinct routed experts that the batch's tokens hit, on average
    """
    decoder, language = runner.model.decoder, runner.model_config.language
    total = float(sum(p.nbytes for p in decoder.parameters()))
    total -= decoder.embed_tokens.nbytes
    for layer in decoder.layers:
        if isinstance(layer.mlp, MoE):
            total -= layer.mlp.routed_bytes * (1 - experts_per_layer / layer.mlp.config.num_experts)
    return total + batch * context * kv_bytes_per_token(language, runner.pool.layers[0].dtype)


def prefill_seconds(runner: Runner, card: Card, num_tokens: int, context: int) -> float:
    """The least time for `num_tokens` prompt tokens in sequences of `context`; float8 weights are multiplied in it."""
    quantization = runner.model_config.quantization
    is_float8 = quantization is not None and any(group.scheme.is_float for group in quantization.groups)
    products, attention = prefill_parts(runner.model_config.language, num_tokens, context)
    return products / (card.float8_per_s if is_float8 else card.flops_per_s) + attention / card.flops_per_s


def prefill_flops(config: LanguageConfig, num_tokens: int, context: int) -> float:
    """Of `num_tokens` prompt tokens in sequences of `context`."""
    return sum(prefill_parts(config, num_tokens, context))


def prefill_parts(config: LanguageConfig, num_tokens: int, context: int) -> tuple[float, float]:
    """FLOPs of (active weights, causal attention)."""
    width, moe = config.hidden_size, config.moe
    if config.mla is None:
        heads_width = (2 * config.heads + 2 * config.kv_heads) * config.head_dim
        attention, pairs = width * heads_width, 2 * config.heads * config.head_dim
    else:
        m = config.mla
        inner = m.nope_dim + m.rope_dim
        attention = width * (config.heads * inner + m.kv_lora_rank + m.rope_dim) + config.heads * m.value_dim * width
        attention += m.kv_lora_rank * config.heads * (m.nope_dim + m.value_dim)
        pairs = config.heads * (inner + m.value_dim)
    products = 0.0
    for layer in range(config.layers):
        if config.is_moe_layer(layer):
            assert moe is not None
            active = 3 * width * (moe.num_active * moe.expert_width + moe.shared_width) + width * moe.num_experts
        else:
            active = 3 * width * config.dense_width
        products += 2 * num_tokens * (attention + active)
    return products, config.layers * num_tokens * context * pairs  # half of 2 · context · pairs


def vision_flops(config: ModelConfig, num_tiles: int) -> float:
    """Tower and projector."""
    vision, projector = config.vision, config.projector
    patches = vision.grid**2
    per_patch = 2 * vision.layers * (4 * vision.width**2 + 2 * vision.width * vision.mlp_width)
    attention = 4 * vision.layers * patches**2 * vision.width
    merged = projector.input_dim * projector.downsample_ratio**2
    tokens = config.tile_geometry.tokens_per_tile
    project = 2 * tokens * projector.n_embed * (merged + projector.n_embed)
    return num_tiles * (patches * per_patch + attention + project)
