"""The SigLIP-so400m tower in timm's form: tiles → patch features.

Source: `siglip_vit.py` of the official repository. The remainder of a tile that fills no patch is dropped (384 =
27 · 14 + 6), the MLP uses the tanh GELU, the final norm follows the last block, and no pooling is done.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vl2.core.model_config import VisionConfig
from vl2.model.linear import GeluLinear, LayerNorm, Linear, add_product, empty
from vl2.model.native_tower import NativeTower
from vl2.ops.attention.tiles import attend_tiles
from vl2.ops.backend import Backend
from vl2.ops.saturate import saturate


class VisionBlock(nn.Module):
    """Pre-norm transformer block, full attention inside a tile."""

    def __init__(self, config: VisionConfig, ops: Backend, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1 = LayerNorm(width, ops, dtype=dtype, device=device)
        self.qkv = Linear(width, 3 * width, bias=True, dtype=dtype, device=device)
        self.proj = Linear(width, width, bias=True, dtype=dtype, device=device)
        self.norm2 = LayerNorm(width, ops, dtype=dtype, device=device)
        self.fc1 = GeluLinear(width, config.mlp_width, ops, dtype=dtype, device=device)
        self.fc2 = Linear(config.mlp_width, width, bias=True, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor, delta: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x [N, patches, W] in the residual's dtype, and what the block before still has to add to it → the same."""
        x, normed = self.norm1.add(x, delta)
        x, normed = self.norm2.add(*add_product(self.proj, x, self.attend(normed)))
        return add_product(self.fc2, x, self.fc1(normed))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        return attend_tiles(self.qkv(x).unflatten(-1, (3, self.heads, -1))).flatten(2)


class VisionTower(nn.Module):
    def __init__(self, config: VisionConfig, ops: Backend, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        self.native: NativeTower | None = None  # set when weights are packed: it computes all of this then
        patch_width = 3 * config.patch_size**2
        self.patch_embed = Linear(patch_width, config.width, bias=True, dtype=dtype, device=device)
        self._wide_embedding: torch.Tensor | None = None  # as wide as the backend's rows; made at the first tile
        self.pos_embed = empty(config.grid**2, config.width, dtype=dtype, device=device)
        self.blocks = nn.ModuleList(VisionBlock(config, ops, dtype=dtype, device=device) for _ in range(config.layers))
        self.norm = LayerNorm(config.width, ops, dtype=dtype, device=device)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """tiles [N, side, side, 3] uint8 → [N, patches, W] model dtype."""
        if self.native is not None:
            return self.native.run(tiles)
        x = self.embed(tiles)
        delta: torch.Tensor | None = self.pos_embed
        x = x.float() if x.dtype == torch.float16 else x
        for block in self.blocks:
            x, delta = block(x, delta)
        return self.norm.add(x, delta)[1]

    def embed(self, tiles: torch.Tensor) -> torch.Tensor:
        """[N, side, side, 3] uint8 → [N, patches, W], without their positions."""
        rows = self.ops.cut_patches(tiles, self.config.patch_size, self.pos_embed.dtype)
        weight = self.patch_embed.weight
        if rows.shape[-1] == weight.shape[1]:
            return self.patch_embed(rows)
        if self._wide_embedding is None:
            self._wide_embedding = F.pad(weight, (0, rows.shape[-1] - weight.shape[1]))
        return saturate(self.patch_embed.multiply(rows, self._wide_embedding, self.patch_embed.bias))
