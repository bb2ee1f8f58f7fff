"""The decoder's two attentions. Both write this step's rows into the cache and then read the whole context from it."""

from __future__ import annotations

import torch
from torch import nn

from vl2.core.model_config import LanguageConfig
from vl2.model.kv_pool import write_rows
from vl2.model.linear import Linear, RMSNorm
from vl2.model.step import QueryRows, StepInputs
from vl2.ops.attention import paged_attention, paged_latent_attention
from vl2.ops.rope import RopeTable, rotate_halves, rotate_pairs, yarn_scale
from vl2.ops.saturate import to_dtype

INNER_NORM_EPS = 1e-6
"""Of MLA's two inner norms, whatever rms_norm_eps says (official code)."""


class MHA(nn.Module):
    """Llama's attention (Tiny); q, k and v are one GEMM."""

    def __init__(self, config: LanguageConfig, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        bias = config.has_attention_bias
        width, q_width = config.hidden_size, config.heads * config.head_dim
        qkv_width = q_width + 2 * config.kv_heads * config.head_dim
        self.qkv = Linear(width, qkv_width, bias=bias, dtype=dtype, device=device)
        self.o_proj = Linear(q_width, width, bias=bias, dtype=dtype, device=device)

    def forward(
        self, x: torch.Tensor, step: StepInputs, queries: QueryRows, rope: RopeTable, pool: torch.Tensor
    ) -> torch.Tensor:
        """x [T, C], rope rows [T, D/2], pool [2, pages, page size, K, D] → [Q, C]."""
        sizes = (self.heads, self.kv_heads, self.kv_heads)
        q, k, v = self.qkv(x).unflatten(-1, (-1, self.head_dim)).split(sizes, dim=1)
        write_rows(pool[0], step.kv_slots, rotate_halves(k, rope))
        write_rows(pool[1], step.kv_slots, v)
        scale = self.head_dim**-0.5
        q = queries.take(rotate_halves(q, rope))
        out = paged_attention(q, pool[0], pool[1], queries.block_tables, queries.chunks, scale, step.rounding.multiple)
        return self.o_proj(out.flatten(1))


class MLA(nn.Module):
    """Multi-head latent attention (arXiv:2405.04434) in its absorbed form: heads read the latent rows themselves.

    kv_b's key half is applied to the queries and its value half to the results: the cache holds R + Dr numbers a token.
    """

    def __init__(self, config: LanguageConfig, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        mla = config.mla
        assert mla is not None
        self.config, self.heads = mla, config.heads
        width, bias = config.hidden_size, config.has_attention_bias
        q_width = config.heads * (mla.nope_dim + mla.rope_dim)
        if mla.q_lora_rank is None:
            self.q_proj = Linear(width, q_width, dtype=dtype, device=device)
        else:
            self.q_a = Linear(width, mla.q_lora_rank, bias=bias, dtype=dtype, device=device)
            self.q_norm = RMSNorm(mla.q_lora_rank, INNER_NORM_EPS, dtype=dtype, device=device)
            self.q_b = Linear(mla.q_lora_rank, q_width, dtype=dtype, device=device)
        self.kv_a = Linear(width, mla.kv_lora_rank + mla.rope_dim, bias=bias, dtype=dtype, device=device)
        self.kv_norm = RMSNorm(mla.kv_lora_rank, INNER_NORM_EPS, dtype=dtype, device=device)
        kv_b_width = config.heads * (mla.nope_dim + mla.value_dim)
        self.kv_b = Linear(mla.kv_lora_rank, kv_b_width, dtype=dtype, device=device)
        self.o_proj = Linear(config.heads * mla.value_dim, width, bias=bias, dtype=dtype, device=device)
        self.scale: float = (mla.nope_dim + mla.rope_dim) ** -0.5
        if config.yarn is not None and config.yarn.mscale_all_dim:
            self.scale *= yarn_scale(config.yarn.factor, config.yarn.mscale_all_dim) ** 2

    def forward(
        self, x: torch.Tensor, step: StepInputs, queries: QueryRows, rope: RopeTable, pool: torch.Tensor
    ) -> torch.Tensor:
        """x [T, C], rope rows [T, Dr/2], pool [pages, page size, R + Dr] → [Q, C]."""
        mla = self.config
        latent, k_rope = self.kv_a(x).split((mla.kv_lora_rank, mla.rope_dim), dim=-1)
        k_rope = rotate_pairs(k_rope.unsqueeze(1), rope).squeeze(1)
        write_rows(pool, step.kv_slots, torch.cat((self.kv_norm(latent), k_rope), dim=-1))

        x, rope = queries.take(x), RopeTable(queries.take(rope.cos), queries.take(rope.sin))
        q_nope, q_rope = self.queries(x).split((mla.nope_dim, mla.rope_dim), dim=-1)
        keys, values = self.kv_b.weight.unflatten(0, (self.heads, -1)).split((mla.nope_dim, mla.value_dim), dim=1)
        q_latent = to_dtype(q_nope.transpose(0, 1) @ keys, x.dtype).transpose(0, 1)
        q = torch.cat((q_latent, rotate_pairs(q_rope, rope)), dim=-1)
        out = paged_latent_attention(
            q, pool, queries.block_tables, queries.chunks, mla.kv_lora_rank, self.scale, step.rounding.multiple
        )
        heads = out.to(x.dtype).transpose(0, 1) @ values.transpose(1, 2)
        return self.o_proj(to_dtype(heads.transpose(0, 1).flatten(1), x.dtype))

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """[T, C] → [T, H, Dn + Dr]."""
        q = self.q_proj(x) if self.config.q_lora_rank is None else self.q_b(self.q_norm(self.q_a(x)))
        return q.unflatten(-1, (self.heads, -1))
