"""downsample_mlp_gelu: r × r patches become one token of the decoder's width (official `MlpProjector`)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from vl2.core.model_config import ProjectorConfig
from vl2.model.linear import Linear
from vl2.model.native_tower import NativeProjector
from vl2.ops.activation import gelu_erf


class Projector(nn.Module):
    def __init__(self, config: ProjectorConfig, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.native: NativeProjector | None = None  # set when weights are packed: it computes all of this then
        self.ratio = config.downsample_ratio
        hidden = config.n_embed * config.mlp_ratio
        widths = [config.input_dim * self.ratio**2, *[hidden] * (config.depth - 1), config.n_embed]
        self.layers = nn.ModuleList(
            Linear(wide_in, wide_out, bias=True, dtype=dtype, device=device)
            for wide_in, wide_out in itertools.pairwise(widths)
        )

    @property
    def linears(self) -> list[Linear]:
        return [layer for layer in self.layers if isinstance(layer, Linear)]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features [N, patches, W] → [N, Q, C]; here GELU is the exact one, unlike in the tower."""
        if self.native is not None:
            return self.native.run(features)
        x = self.layers[0](merge_patches(features, self.ratio))
        for layer in self.layers[1:]:
            x = layer(gelu_erf(x))
        return x


def merge_patches(features: torch.Tensor, ratio: int) -> torch.Tensor:
    """r × r neighbours side by side, channel-major: index = channel · r² + dy · r + dx (the order of torch's unfold).

    A grid that r does not divide gets zero rows at the bottom and zero columns at the right.
    features [N, g · g, W] → [N, ⌈g/r⌉², W · r²]
    """
    grid = int(features.shape[1] ** 0.5)
    missing = -grid % ratio
    x = F.pad(features.unflatten(1, (grid, grid)), (0, 0, 0, missing, 0, missing))
    blocks = x.unflatten(2, (-1, ratio)).unflatten(1, (-1, ratio)).permute(0, 1, 3, 5, 2, 4)
    return blocks.flatten(3).flatten(1, 2)
