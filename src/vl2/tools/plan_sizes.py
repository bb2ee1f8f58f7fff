"""Bytes of everything that lies on the device, from config.json alone; the same sums that `model/` allocates.

`b` below is the bytes of a number in the computing format. The tests hold these sums against the model's own parameters
and the engine's own allocations.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from vl2.core.model_config import LanguageConfig, ModelConfig, ProjectorConfig, VisionConfig
from vl2.core.quantization import Quantization, WeightScheme

BYTES_PER_NUMBER = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}  # the last of the KV cache alone
FLOAT32_BYTES = 4
LAYERS = "language.model.layers"


@dataclass(frozen=True, slots=True)
class Linear:
    """`count` matrices of one shape that are stored alike, by the name of the first in the checkpoint."""

    name: str
    out_width: int
    in_width: int
    count: int = 1
    has_float32_scales: bool = False  # as logits, which are float32

    @property
    def numbers(self) -> int:
        return self.count * self.out_width * self.in_width


@dataclass(frozen=True, slots=True)
class Weights:
    """What a model's parameters are."""

    linears: tuple[Linear, ...]  # of the decoder's layers, and its head: what few bits can hold
    plain: int  # numbers in the computing format: tower, projector, embeddings, norms, biases, kv_b
    float32: int  # the routers, always

    @property
    def total(self) -> int:
        return sum(linear.numbers for linear in self.linears) + self.plain + self.float32

    def num_bytes(self, dtype: str, quantization: Quantization | None = None) -> int:
        """On a GPU: codes of few bits lie side by side, one scale in `dtype` (fp8, head: float32) for each group."""
        size = BYTES_PER_NUMBER[dtype]
        total = self.plain * size + self.float32 * FLOAT32_BYTES
        for linear in self.linears:
            scheme = None if quantization is None else quantization.scheme_of(linear.name)
            if scheme is None or not _is_held(scheme, linear.in_width):
                total += linear.numbers * size
            else:
                scales = linear.count * linear.out_width * scheme.num_groups(linear.in_width)
                is_float32 = scheme.is_float or linear.has_float32_scales
                total += linear.numbers * scheme.bits // 8 + scales * (FLOAT32_BYTES if is_float32 else size)
        return total


def _is_held(scheme: WeightScheme, in_width: int) -> bool:
    """As the GPU's kernels decide (ops/quantized_weight/triton_layout.py): they take 64 or 128 inputs at a time."""
    group = scheme.group_size or in_width
    step = min(scheme.group_size or (128 if in_width % 128 == 0 else 64), 128)
    return step >= 64 and in_width % group == 0 and group % step == 0


def count_weights(config: ModelConfig) -> Weights:
    language = config.language
    width, mla = language.hidden_size, language.mla
    plain = _vision(config.vision) + _projector(config.projector)
    plain += language.vocab_size * width + 3 * width  # embeddings; last norm, newline, separator
    plain += language.layers * (2 * width + _vectors(language))
    if mla is not None:
        plain += language.layers * mla.kv_lora_rank * language.heads * (mla.nope_dim + mla.value_dim)  # kv_b
    moe_layers = sum(language.is_moe_layer(layer) for layer in range(language.layers))
    has_bias = language.moe is not None and language.moe.topk_method == "noaux_tc"
    router = 0 if language.moe is None else language.moe.num_experts * (width + has_bias)
    linears = [linear for layer in range(language.layers) for linear in _layer(language, layer)]
    linears.append(Linear("language.lm_head", language.vocab_size, width, has_float32_scales=True))
    return Weights(tuple(linears), plain, moe_layers * router)


def _vision(config: VisionConfig) -> int:
    width, inner = config.width, config.mlp_width
    patch = 3 * config.patch_size**2
    block = (
        4 * width + _linear(width, 3 * width) + _linear(width, width) + _linear(width, inner) + _linear(inner, width)
    )
    return _linear(patch, width) + config.grid**2 * width + config.layers * block + 2 * width


def _projector(config: ProjectorConfig) -> int:
    hidden = config.n_embed * config.mlp_ratio
    widths = [config.input_dim * config.downsample_ratio**2, *[hidden] * (config.depth - 1), config.n_embed]
    return sum(_linear(wide_in, wide_out) for wide_in, wide_out in itertools.pairwise(widths))


def _linear(wide_in: int, wide_out: int) -> int:
    return wide_in * wide_out + wide_out


def _layer(config: LanguageConfig, layer: int) -> Iterator[Linear]:
    """The linears of one decoder layer, but for MLA's kv_b, which is never in few bits."""
    width, heads, mla = config.hidden_size, config.heads, config.mla
    attention, mlp = f"{LAYERS}.{layer}.self_attn", f"{LAYERS}.{layer}.mlp"
    if mla is None:
        yield Linear(f"{attention}.q_proj", heads * config.head_dim, width)
        yield Linear(f"{attention}.k_proj", config.kv_heads * config.head_dim, width, 2)
        yield Linear(f"{attention}.o_proj", width, heads * config.head_dim)
    else:
        q_width = heads * (mla.nope_dim + mla.rope_dim)
        if mla.q_lora_rank is None:
            yield Linear(f"{attention}.q_proj", q_width, width)
        else:
            yield Linear(f"{attention}.q_a_proj", mla.q_lora_rank, width)
            yield Linear(f"{attention}.q_b_proj", q_width, mla.q_lora_rank)
        yield Linear(f"{attention}.kv_a_proj_with_mqa", mla.kv_lora_rank + mla.rope_dim, width)
        yield Linear(f"{attention}.o_proj", width, heads * mla.value_dim)
    if not config.is_moe_layer(layer):
        yield from _mlp(mlp, width, config.dense_width)
        return
    assert config.moe is not None
    yield from _mlp(f"{mlp}.experts.0", width, config.moe.expert_width, config.moe.num_experts)
    num_shared = config.moe.shared_width // config.moe.expert_width  # as many experts more
    if num_shared:
        yield from _mlp(f"{mlp}.shared_experts", width, config.moe.expert_width, num_shared)


def _mlp(name: str, width: int, inner: int, count: int = 1) -> Iterator[Linear]:
    yield Linear(f"{name}.gate_proj", inner, width, 2 * count)  # and up_proj
    yield Linear(f"{name}.down_proj", width, inner, count)


def _vectors(config: LanguageConfig) -> int:
    """Numbers of one layer's attention in norms and biases."""
    mla, has_bias = config.mla, config.has_attention_bias
    if mla is None:
        return has_bias * (config.heads + 2 * config.kv_heads) * config.head_dim
    biases = has_bias * (mla.kv_lora_rank + mla.rope_dim + config.hidden_size)
    return mla.kv_lora_rank + biases + (mla.q_lora_rank or 0) * (1 + has_bias)


def kv_bytes_per_token(config: LanguageConfig, dtype: str) -> int:
    """As `model/kv_pool.py`: the latent row (MLA) or keys and values of all heads (MHA), of all layers."""
    mla = config.mla
    width = 2 * config.kv_heads * config.head_dim if mla is None else mla.kv_lora_rank + mla.rope_dim
    return width * BYTES_PER_NUMBER[dtype] * config.layers


def feature_bytes(config: ModelConfig, dtype: str, image_cache_tiles: int) -> int:
    """The table of encoded tiles (`image_cache_tiles`, and at least the largest picture)."""
    side = config.tile_geometry.side
    largest = 1 + max(width * height // side**2 for width, height in config.candidate_resolutions)
    rows = max(image_cache_tiles, largest) * config.tile_geometry.tokens_per_tile + 2
    return rows * config.language.hidden_size * BYTES_PER_NUMBER[dtype]


def vision_workspace_bytes(config: ModelConfig, dtype: str, tiles: int) -> int:
    """Largest moment of the tower: residual, normed rows, and qkv in two layouts or the MLP's rows."""
    vision = config.vision
    residual = FLOAT32_BYTES if dtype == "float16" else BYTES_PER_NUMBER[dtype]
    widest = max(6 * vision.width, 2 * vision.width + vision.mlp_width)
    return tiles * vision.grid**2 * (vision.width * residual + widest * BYTES_PER_NUMBER[dtype])


def step_workspace_bytes(config: ModelConfig, dtype: str, *, tokens: int, context: int, sequences: int) -> int:
    """Largest moment of a step of `tokens` at the ends of whole contexts, and of the logits of all sequences."""
    language = config.language
    width, moe, mla = language.hidden_size, language.moe, language.mla
    dense = 3 * language.dense_width if moe is None or moe.first_dense_layers else 0
    routed = 0
    if moe is not None:
        shared = moe.shared_width // moe.expert_width
        routed = (moe.num_active + shared) * (moe.expert_width + width)
    rows = tokens * (4 * width + max(dense, routed)) * BYTES_PER_NUMBER[dtype]
    expanded = 0
    if mla is not None:
        keys = -(-tokens // context) * context
        expanded = keys * language.heads * (mla.nope_dim + mla.value_dim) * BYTES_PER_NUMBER[dtype]
    logits = sequences * language.vocab_size * FLOAT32_BYTES
    return max(rows, expanded, logits) + logits  # sampling has logits of its own, in another graph's memory
