"""The DeepSeekMoE decoder: embeddings → layers → normed hidden states → logits."""

from __future__ import annotations

import torch
from torch import nn

from vl2.core.model_config import LanguageConfig
from vl2.model.attention import MHA, MLA
from vl2.model.kv_pool import KVPool
from vl2.model.linear import Place, QuantizedLinear, RMSNorm, add_product, empty
from vl2.model.moe import MLP, MoE, make_moe
from vl2.model.native_prompts import NativePrompts
from vl2.model.step import QueryRows, StepInputs
from vl2.ops.backend import Backend
from vl2.ops.experts.mixture import Mixture, add_up
from vl2.ops.native.linear import NativeLinear
from vl2.ops.rope.table import RopeTable, rope_table
from vl2.ops.rows import pad_rows


class DecoderLayer(nn.Module):
    """Pre-norm: x += attention(norm(x)); x += feed_forward(norm(x)).

    What a layer adds last is handed on as `delta`, so that each addition is fused with the norm that follows it;
    attention's may be fused with its last product instead (`add_product`).
    """

    def __init__(
        self,
        config: LanguageConfig,
        layer: int,
        ops: Backend,
        place: Place = Place(),
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.attention_norm = RMSNorm(width, eps, ops, dtype=dtype, device=device)
        attention = MLA if config.mla else MHA
        self.attention = attention(config, ops, place.at("self_attn"), dtype=dtype, device=device)
        self.mlp_norm = RMSNorm(width, eps, ops, dtype=dtype, device=device)
        self.mlp: MLP | MoE
        if config.is_moe_layer(layer):
            assert config.moe is not None
            self.mlp = make_moe(width, config.moe, ops, place.at("mlp"), dtype=dtype, device=device)
        else:
            self.mlp = MLP(width, config.dense_width, ops, place.at("mlp"), dtype=dtype, device=device)

    def forward(
        self,
        x: torch.Tensor,
        delta: torch.Tensor | Mixture | None,
        step: StepInputs,
        queries: QueryRows,
        rope: RopeTable,
        pool: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | Mixture]:
        """x and delta [T, C] → the same [Q, C]."""
        x, normed = self.attention_norm.add(x, delta)
        attended = self.attention(normed, step, queries, rope, pool)
        x, delta = add_product(self.attention.o_proj, queries.take(x), attended)
        if not isinstance(self.mlp, MoE):
            x, normed = self.mlp_norm.add(x, delta)
            return x, self.mlp(normed)
        num_rows = queries.sequences.num_rows
        x, out = self.mlp.norm_and_mix(self.mlp_norm, x, delta, num_rows, step.rounding)
        return x, out if len(out) == len(x) else pad_rows(add_up(out), len(x))


class Decoder(nn.Module):
    def __init__(
        self,
        config: LanguageConfig,
        max_positions: int,
        ops: Backend,
        place: Place = Place(),
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        self.ops = ops
        self.embed_tokens = empty(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, ops, place.at(f"model.layers.{layer}"), dtype=dtype, device=device)
            for layer in range(config.layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops, dtype=dtype, device=device)
        self.lm_head: nn.Parameter | QuantizedLinear
        self.native_head: NativeLinear | None = None  # set when weights are packed: it multiplies then
        self.native_prompts: NativePrompts | None = None  # set by the engine: it computes all layers then
        vocabulary, width = config.vocab_size, config.hidden_size
        scheme = place.scheme(["lm_head"], ops, vocabulary, width)
        if scheme is None:
            self.lm_head = empty(vocabulary, width, dtype=dtype, device=device)
        else:
            self.lm_head = QuantizedLinear(width, vocabulary, scheme, ops, dtype=torch.float32, device=device)
        rotated = config.mla.rope_dim if config.mla else config.head_dim
        self.rope = rope_table(rotated, max_positions, config.rope_theta, config.yarn, device)

    def forward(self, embeds: torch.Tensor, step: StepInputs, pool: KVPool) -> torch.Tensor:
        """embeds [T, C], overwritten → hidden states after the final norm, of `step.last_queries` [Q, C].

        The residual stream has the model's dtype; for float16 it is float32, whose range it needs.
        """
        if self.native_prompts is not None:
            return self.native_prompts.run(embeds, step, pool)
        x = embeds.float() if embeds.dtype == torch.float16 else embeds
        delta: torch.Tensor | Mixture | None = None
        for layer, layer_pool in zip(self.layers, pool.layers, strict=True):
            queries = step.last_queries if layer is self.layers[-1] else step.queries
            x, delta = layer(x, delta, step, queries, self.rope, layer_pool)
        return self.norm.add(x, delta)[1]

    def logits(self, hidden: torch.Tensor, is_exact: bool = True) -> torch.Tensor:
        """hidden [L, C] → [L, V] float32, not rounded: by the library where it has the matrix, else `ops/logits.py`."""
        if self.native_head is not None:
            return self.native_head.project(hidden)
        if isinstance(self.lm_head, QuantizedLinear):
            return self.ops.quantized_logits(hidden, self.lm_head.weight, is_exact)
        return self.ops.logits(hidden, self.lm_head, is_exact)
