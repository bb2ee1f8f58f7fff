"""The vision tower and the projector by one call each of the native library, on matrix units."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from vl2.model.linear import LayerNorm, Linear
from vl2.ops.native.linear import multiplies
from vl2.ops.native.matrices import STRIP
from vl2.ops.native.prompts import present_workers
from vl2.ops.native.structures import Matrix, ProjectorJob, TowerBlock, TowerJob
from vl2.ops.norm.reference import LAYER_NORM_EPS
from vl2.ops.patches.reference import normalise

if TYPE_CHECKING:
    from vl2.model.projector import Projector
    from vl2.model.vision import VisionTower


class NativeTower:
    """A packed tower, which must stay."""

    def __init__(self, tower: VisionTower) -> None:
        config = tower.config
        self._kept: list[object] = []
        described = [self._block(block) for block in tower.blocks]
        self._blocks = (TowerBlock * len(described))(*described)
        self._numbers = normalise(torch.arange(256, dtype=torch.uint8), tower.pos_embed.dtype).contiguous()
        self._job = TowerJob(
            numbers=self._numbers.data_ptr(),
            places=tower.pos_embed.data_ptr(),
            blocks=ctypes.addressof(self._blocks),
            embed=_matrix(tower.patch_embed),
            grid=config.grid,
            patch=config.patch_size,
            width=config.width,
            heads=config.heads,
            inner=described[0].fc1.out_width,
            num_blocks=len(described),
            eps=LAYER_NORM_EPS,
        )
        self._job.norm, self._job.norm_bias = self._norm(tower.norm)
        self._rows, self._width = config.grid**2, config.width

    def run(self, tiles: torch.Tensor) -> torch.Tensor:
        """tiles [N, side, side, 3] uint8 → [N, patches, W] bfloat16."""
        assert tiles.dtype == torch.uint8 and tiles.shape[1] == tiles.shape[2]
        pixels = tiles.contiguous()
        out = torch.empty(len(tiles), self._rows, self._width, dtype=torch.bfloat16)
        own = TowerJob.from_buffer_copy(self._job)
        own.pixels, own.out, own.tiles, own.side = pixels.data_ptr(), out.data_ptr(), *tiles.shape[:2]
        if len(tiles):
            present_workers().encode(own)
        return out

    def _block(self, block: nn.Module) -> TowerBlock:
        described = TowerBlock(
            qkv=_matrix(block.qkv), proj=_matrix(block.proj), fc1=_matrix(block.fc1), fc2=_matrix(block.fc2)
        )
        described.norm1, described.norm1_bias = self._norm(block.norm1)
        described.norm2, described.norm2_bias = self._norm(block.norm2)
        return described

    def _norm(self, norm: torch.Tensor | nn.Module) -> tuple[int, int]:
        """Where weights and biases lie as float32."""
        assert isinstance(norm, LayerNorm)
        weight, bias = norm.weight.detach().float(), norm.bias.detach().float()
        self._kept += [weight, bias]
        return weight.data_ptr(), bias.data_ptr()


class NativeProjector:
    """A packed projector, which must stay."""

    def __init__(self, projector: Projector) -> None:
        described = [_matrix(linear) for linear in projector.linears]
        self._linears = (Matrix * len(described))(*described)
        self._ratio, self._width = projector.ratio, described[-1].out_width

    def run(self, features: torch.Tensor) -> torch.Tensor:
        """features [N, patches, W] bfloat16 → [N, Q, C]."""
        assert features.is_contiguous() and features.dtype == torch.bfloat16
        tiles, patches, width = features.shape
        grid = math.isqrt(patches)
        out = features.new_empty(tiles, (-(-grid // self._ratio)) ** 2, self._width)
        own = ProjectorJob(features.data_ptr(), ctypes.addressof(self._linears), out.data_ptr())
        own.tiles, own.grid, own.width, own.ratio, own.num_linears = tiles, grid, width, self._ratio, len(self._linears)
        if tiles:
            present_workers().project_tiles(own)
        return out


def describe_tower(tower: VisionTower) -> NativeTower | None:
    """Of a packed tower; None: torch has a part in it, or its heads have an odd width."""
    linears = [module for module in tower.modules() if isinstance(module, Linear)]
    if not multiplies() or any(linear.native is None for linear in linears):
        return None
    is_even = tower.config.width // tower.config.heads % 2 == 0
    return NativeTower(tower) if is_even and len(tower.blocks) else None


def describe_projector(projector: Projector) -> NativeProjector | None:
    """As `describe_tower`."""
    linears = projector.linears
    if not multiplies() or any(linear.native is None for linear in linears):
        return None
    is_whole = all(_matrix(linear).in_width % STRIP == 0 for linear in linears)
    return NativeProjector(projector) if is_whole else None


def _matrix(linear: torch.Tensor | nn.Module) -> Matrix:
    assert isinstance(linear, Linear) and linear.native is not None
    return linear.native.matrix
