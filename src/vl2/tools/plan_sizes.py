"""Bytes of everything that lies on the device, from config.json alone; the same sums that `model/` allocates.

`b` below is the bytes of a number in the computing format. The tests hold these sums against the model's own parameters
and the engine's own allocations.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from vl2.core.model_config import LanguageConfig, ModelConfig, MoEConfig, ProjectorConfig, VisionConfig

BYTES_PER_NUMBER = {"float32": 4, "bfloat16": 2, "float16": 2}
INT4_GROUP = 128
INT4_BITS = 4 + 16 / INT4_GROUP
"""Of a weight in groups of 128 with one 16-bit scale each (symmetric)."""
FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Weights:
    """Numbers of parameters by how they are stored."""

    packable: int  # matrices of the decoder's layers: 4-bit formats pack these
    plain: int  # in the computing format: tower, projector, embeddings, norms, biases
    float32: int  # the routers, always

    def num_bytes(self, dtype: str, *, is_int4: bool = False) -> int:
        bits = INT4_BITS if is_int4 else 8 * BYTES_PER_NUMBER[dtype]
        plain = self.plain * BYTES_PER_NUMBER[dtype] + self.float32 * FLOAT32_BYTES
        return plain + int(self.packable * bits / 8)

    @property
    def total(self) -> int:
        return self.packable + self.plain + self.float32


def count_weights(config: ModelConfig) -> Weights:
    language = config.language
    width = language.hidden_size
    outside = 2 * language.vocab_size * width + 3 * width  # embeddings, head; last norm, newline, separator
    plain = _vision(config.vision) + _projector(config.projector) + outside
    packable = float32 = 0
    for layer in range(language.layers):
        matrices, vectors = _attention(language)
        packable, plain = packable + matrices, plain + vectors + 2 * width
        if language.is_moe_layer(layer):
            assert language.moe is not None
            packable += _moe_matrices(width, language.moe)
            has_bias = language.moe.topk_method == "noaux_tc"
            float32 += language.moe.num_experts * (width + has_bias)
        else:
            packable += 3 * width * language.dense_width
    return Weights(packable, plain, float32)


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


def _attention(config: LanguageConfig) -> tuple[int, int]:
    """Numbers in matrices, and in norms and biases, of one layer."""
    width, heads, has_bias = config.hidden_size, config.heads, config.has_attention_bias
    if config.mla is None:
        q_width, kv_width = heads * config.head_dim, 2 * config.kv_heads * config.head_dim
        return width * (2 * q_width + kv_width), has_bias * (q_width + kv_width)
    mla = config.mla
    q_width, kv_a = heads * (mla.nope_dim + mla.rope_dim), mla.kv_lora_rank + mla.rope_dim
    matrices = width * kv_a + mla.kv_lora_rank * heads * (mla.nope_dim + mla.value_dim) + heads * mla.value_dim * width
    vectors = mla.kv_lora_rank + has_bias * (kv_a + width)
    if mla.q_lora_rank is None:
        return matrices + width * q_width, vectors
    return matrices + mla.q_lora_rank * (width + q_width), vectors + mla.q_lora_rank * (1 + has_bias)


def _moe_matrices(width: int, moe: MoEConfig) -> int:
    return 3 * width * (moe.num_experts * moe.expert_width + moe.shared_width)


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
    """Largest moment of a step of `tokens` at the end of `context`, and of the logits of all sequences."""
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
        expanded = context * language.heads * (mla.nope_dim + mla.value_dim) * BYTES_PER_NUMBER[dtype]
    logits = sequences * language.vocab_size * FLOAT32_BYTES
    return max(rows, expanded, logits) + logits  # sampling has logits of its own, in another graph's memory
