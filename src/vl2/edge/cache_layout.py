"""A layer's KV cache is one matrix with a row for each token."""

from __future__ import annotations

from vl2.core.model_config import LanguageConfig


def cache_width(config: LanguageConfig) -> int:
    """Numbers that a token takes in the cache of one layer."""
    if config.mla is not None:
        return config.mla.kv_lora_rank + config.mla.rope_dim
    return 2 * config.kv_heads * config.head_dim
