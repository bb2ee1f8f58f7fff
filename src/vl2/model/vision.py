"""The SigLIP-so400m tower in timm's form: tiles → patch features.

Source: `siglip_vit.py` of the official repository. The remainder of a tile that fills no patch is dropped (384 =
27 · 14 + 6), the MLP uses the tanh GELU, the final norm follows the last block, and no pooling is done.
"""

from __future__ import annotations

import torch
from torch import nn

from vl2.core.model_config import VisionConfig
from vl2.model.linear import GeluLinear, LayerNorm, Linear, empty
from vl2.model.native_tower import NativeTower
from vl2.ops.attention.tiles import attend_tiles
from vl2.ops.backend import Backend
from vl2.ops.saturate import to_dtype

PIXEL_MEAN = PIXEL_STD = 0.5
"""Of every published processor_config.json; the processor refuses others."""


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

    def forward(self, x: torch.Tensor, delta: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """x [N, patches, W] in the residual's dtype, and what the block before still has to add to it → the same."""
        x, normed = self.norm1.add(x, delta)
        x, normed = self.norm2.add(x, self.attention(normed))
        return x, self.fc2(self.fc1(normed))

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(attend_tiles(self.qkv(x).unflatten(-1, (3, self.heads, -1))).flatten(2))


class VisionTower(nn.Module):
    def __init__(self, config: VisionConfig, ops: Backend, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.config = config
        self.native: NativeTower | None = None  # set when weights are packed: it computes all of this then
        patch_width = 3 * config.patch_size**2
        self.patch_embed = Linear(patch_width, config.width, bias=True, dtype=dtype, device=device)
        self.pos_embed = empty(config.grid**2, config.width, dtype=dtype, device=device)
        self.blocks = nn.ModuleList(VisionBlock(config, ops, dtype=dtype, device=device) for _ in range(config.layers))
        self.norm = LayerNorm(config.width, ops, dtype=dtype, device=device)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """tiles [N, side, side, 3] uint8 → [N, patches, W] model dtype."""
        if self.native is not None:
            return self.native.run(tiles)
        x = self.patch_embed(self.patches(tiles))
        x = (x.float() if x.dtype == torch.float16 else x) + self.pos_embed
        delta = None
        for block in self.blocks:
            x, delta = block(x, delta)
        return self.norm.add(x, delta)[1]

    def patches(self, tiles: torch.Tensor) -> torch.Tensor:
        """Pixels as the rows of a matrix, so that the patch embedding is a plain GEMM.

        tiles [N, side, side, 3] uint8 → [N, patches, 3 · P · P], channel-major like the convolution's weight.
        """
        grid, size = self.config.grid, self.config.patch_size
        return (
            self.normalise(tiles[:, : grid * size, : grid * size])
            .unflatten(2, (grid, size))
            .unflatten(1, (grid, size))
            .permute(0, 1, 3, 5, 2, 4)
            .flatten(3)
            .flatten(1, 2)
        )

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 → model dtype."""
        return to_dtype((pixels.float() / 255.0 - PIXEL_MEAN) / PIXEL_STD, self.pos_embed.dtype)
