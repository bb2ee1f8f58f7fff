"""The decoder's two attentions. Both write this step's rows into the cache and then read the whole context from it.
The layer multiplies with `o_proj`, which may add the residual on its way.
"""

from __future__ import annotations

import functools

import torch
from torch import nn

from vl2.core.model_config import LanguageConfig
from vl2.core.yarn import yarn_scale
from vl2.model.linear import Linear, Place, RMSNorm, is_plain, is_plainly_quantized, lie_together
from vl2.model.step import QueryRows, StepInputs
from vl2.ops.attention.reference import attend_mla
from vl2.ops.backend import Backend
from vl2.ops.native.linear import NativeLinear
from vl2.ops.rope.table import RopeTable
from vl2.ops.saturate import saturate

INNER_NORM_EPS = 1e-6
"""Of MLA's two inner norms, whatever rms_norm_eps says (official code)."""


class MHA(nn.Module):
    """Llama's attention (Tiny); q, k and v are one GEMM."""

    def __init__(
        self,
        config: LanguageConfig,
        ops: Backend,
        place: Place = Place(),
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        self.ops = ops
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        bias = config.has_attention_bias
        width, q_width = config.hidden_size, config.heads * config.head_dim
        kv_width = config.kv_heads * config.head_dim
        parts = {"q_proj": q_width, "k_proj": kv_width, "v_proj": kv_width}
        self.qkv = place.linear(width, parts, ops, bias=bias, dtype=dtype, device=device)
        self.o_proj = place.linear(q_width, {"o_proj": width}, ops, bias=bias, dtype=dtype, device=device)

    def forward(
        self, x: torch.Tensor, step: StepInputs, queries: QueryRows, rope: RopeTable, pool: torch.Tensor
    ) -> torch.Tensor:
        """x [T, C], pool [2, pages, page size, K, D] → what `o_proj` takes, [Q, H · D]."""
        q = self.ops.write_heads(self.qkv(x), rope, step.positions, step.kv_slots, pool)
        out = self.ops.attend_heads(queries.take(q), pool, queries.sequences, self.head_dim**-0.5)
        return out.flatten(1)


class MLA(nn.Module):
    """Multi-head latent attention (arXiv:2405.04434): the cache holds R + Dr numbers a token.

    kv_b makes every head's keys and values of a latent row. Absorbed, its key half is applied to the queries and its
    value half to the results, and heads read the latent rows themselves; a backend may do either (`attend_mla`).
    """

    def __init__(
        self,
        config: LanguageConfig,
        ops: Backend,
        place: Place = Place(),
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        self.ops = ops
        mla = config.mla
        assert mla is not None
        self.config, self.heads = mla, config.heads
        width, bias = config.hidden_size, config.has_attention_bias
        q_width = config.heads * (mla.nope_dim + mla.rope_dim)
        if mla.q_lora_rank is None:
            self.q_proj = place.linear(width, {"q_proj": q_width}, ops, dtype=dtype, device=device)
        else:
            rank = {"q_a_proj": mla.q_lora_rank}
            self.q_a = place.linear(width, rank, ops, bias=bias, dtype=dtype, device=device)
            self.q_norm = RMSNorm(mla.q_lora_rank, INNER_NORM_EPS, ops, dtype=dtype, device=device)
            self.q_b = place.linear(mla.q_lora_rank, {"q_b_proj": q_width}, ops, dtype=dtype, device=device)
        latent = {"kv_a_proj_with_mqa": mla.kv_lora_rank + mla.rope_dim}
        self.kv_a = place.linear(width, latent, ops, bias=bias, dtype=dtype, device=device)
        if mla.q_lora_rank is None:
            lie_together(self.kv_a, self.q_proj)
        self.kv_norm = RMSNorm(mla.kv_lora_rank, INNER_NORM_EPS, ops, dtype=dtype, device=device)
        kv_b_width = config.heads * (mla.nope_dim + mla.value_dim)
        self.kv_b = Linear(mla.kv_lora_rank, kv_b_width, dtype=dtype, device=device)
        self.expand: NativeLinear | None = None  # kv_b once more, for prompts; set when weights are packed
        values = config.heads * mla.value_dim
        self.o_proj = place.linear(values, {"o_proj": width}, ops, bias=bias, dtype=dtype, device=device)
        self.scale: float = (mla.nope_dim + mla.rope_dim) ** -0.5
        if config.yarn is not None and config.yarn.mscale_all_dim:
            self.scale *= yarn_scale(config.yarn.factor, config.yarn.mscale_all_dim) ** 2

    def forward(
        self, x: torch.Tensor, step: StepInputs, queries: QueryRows, rope: RopeTable, pool: torch.Tensor
    ) -> torch.Tensor:
        """x [T, C], pool [pages, page size, R + Dr] → what `o_proj` takes, [Q, H · Dv]."""
        latent, q = self._project(x, queries)
        norm = self.kv_norm.weight, INNER_NORM_EPS
        if self.ops.decode_mla is not None and queries.rows is None and queries.sequences.max_query_rows <= 1:
            own, places = (latent, *norm, q, self.kv_b.weight), (step.positions, step.kv_slots)
            return self.ops.decode_mla(*own, pool, rope, *places, queries.sequences, self.scale)
        self.ops.write_latent(latent, *norm, rope, step.positions, step.kv_slots, pool)
        attend = self.ops.attend_mla if self.expand is None else functools.partial(attend_mla, expand=self.expand)
        return attend(q, self.kv_b.weight, pool, rope, queries.take(step.positions), queries.sequences, self.scale)

    def _project(self, x: torch.Tensor, queries: QueryRows) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, C] → latent rows [T, R + Dr], queries [Q, H, Dn + Dr]."""
        shares_rows = self.config.q_lora_rank is None and queries.rows is None
        if shares_rows and is_plain(self.kv_a) and is_plain(self.q_proj):
            latent, q = self.ops.linear_both(x, self.kv_a.weight, self.q_proj.weight)
            return saturate(latent), saturate(q).unflatten(-1, (self.heads, -1))
        if shares_rows and is_plainly_quantized(self.kv_a) and is_plainly_quantized(self.q_proj):
            weights = self.kv_a.weight, self.q_proj.weight
            latent, q = self.ops.quantized_linear_both(x, *weights, self.kv_a.rounding)
            return latent, q.unflatten(-1, (self.heads, -1))
        return self.kv_a(x), self.queries(queries.take(x))

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """[T, C] → [T, H, Dn + Dr]."""
        q = self.q_proj(x) if self.config.q_lora_rank is None else self.q_b(self.q_norm(self.q_a(x)))
        return q.unflatten(-1, (self.heads, -1))
