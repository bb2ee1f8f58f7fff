"""The paged cache in both layouts: K and V heads (MHA), or one latent row with the rotated shared key (MLA)."""

from __future__ import annotations

import torch

from vl2.core.model_config import LanguageConfig


def kv_bytes_per_token(config: LanguageConfig, dtype: torch.dtype) -> int:
    """Bytes that one token takes in the cache of all layers."""
    if config.mla is not None:
        width = config.mla.kv_lora_rank + config.mla.rope_dim
    else:
        width = 2 * config.kv_heads * config.head_dim
    return width * dtype.itemsize * config.layers


class KVPool:
    """One tensor a layer: MLA [pages, page size, R + Dr]; MHA [2, pages, page size, K, D] (keys, values).

    One page more than `num_pages` is kept: tokens that only fill up a step write to it.
    """

    def __init__(
        self, config: LanguageConfig, num_pages: int, page_size: int, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        if config.mla is not None:
            shape: tuple[int, ...] = (num_pages + 1, page_size, config.mla.kv_lora_rank + config.mla.rope_dim)
        else:
            shape = (2, num_pages + 1, page_size, config.kv_heads, config.head_dim)
        self.num_pages, self.page_size = num_pages, page_size
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
