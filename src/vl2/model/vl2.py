"""The whole model: tiles → features; tokens and features → hidden states → logits."""

from __future__ import annotations

import torch
from torch import nn

from vl2.core.model_config import ModelConfig
from vl2.core.tiling import NEWLINE_ROW, SEPARATOR_ROW
from vl2.model.decoder import Decoder
from vl2.model.kv_pool import KVPool
from vl2.model.linear import Linear, Place, QuantizedLinear, empty
from vl2.model.moe import QuantizedMoE
from vl2.model.projector import Projector
from vl2.model.step import StepInputs
from vl2.model.vision import VisionTower
from vl2.ops.backend import choose_backend
from vl2.ops.logits import ROWS_AT_ONCE
from vl2.ops.rows import RowRounding, pad_rows


class DeepseekVL2(nn.Module):
    def __init__(
        self,
        config: ModelConfig,
        max_positions: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        is_deterministic: bool = False,
    ) -> None:
        super().__init__()
        self.ops = ops = choose_backend(torch.device(device), is_deterministic)
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self.vision = VisionTower(config.vision, ops, dtype=dtype, device=device)
        self.projector = Projector(config.projector, dtype=dtype, device=device)
        width = config.language.hidden_size
        self.image_newline = empty(width, dtype=dtype, device=device)
        self.view_separator = empty(width, dtype=dtype, device=device)
        place = Place(config.quantization, "language")
        self.decoder = Decoder(config.language, max_positions, ops, place, dtype=dtype, device=device)
        for module in self.modules():
            if isinstance(module, Linear):
                module.multiply, module.multiply_onto = ops.linear, ops.linear_onto
        for module in self.vision.blocks.modules():
            if isinstance(module, Linear):
                module.multiply, module.multiply_onto = ops.tower_linear, ops.tower_linear_onto

    def encode_tiles(self, tiles: torch.Tensor) -> torch.Tensor:
        """tiles [N, side, side, 3] uint8 → [N, Q, C] model dtype."""
        return self.projector(self.vision(tiles))

    def set_rounding(self, rounding: RowRounding) -> None:
        """Round up the rows of every linear, so that a row's bits do not depend on the others."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.row_multiple = rounding.multiple
            elif isinstance(module, QuantizedLinear):
                module.rounding = rounding

    @property
    def num_parameters(self) -> int:
        """Weights, however many bits one has."""
        quantized = [module for module in self.modules() if isinstance(module, QuantizedLinear | QuantizedMoE)]
        plain = [p for name, p in self.named_parameters() if not name.endswith(("codes", "scales"))]
        return sum(p.numel() for p in plain) + sum(module.num_weights for module in quantized)

    def gemm_shapes(self) -> frozenset[tuple[int, int]]:
        """(inner width, outer width) of every matrix product with a weight; of the vocabulary, of one block."""
        named = self.named_parameters()
        weights = [p for name, p in named if p.dim() >= 2 and p.dtype == self.dtype and not name.endswith("scales")]
        return frozenset((weight.shape[-1], min(weight.shape[-2], ROWS_AT_ONCE)) for weight in weights)

    def feature_table(self, num_tiles: int) -> torch.Tensor:
        """A table that picture tokens are looked up in: Q rows for each of `num_tiles` tile slots, then the separator
        and the newline as the last two rows, so that SEPARATOR_ROW and NEWLINE_ROW are plain negative indices.

        Returns: [num_tiles · Q + 2, C] model dtype
        """
        per_tile = self.config.tile_geometry.tokens_per_tile
        width = self.config.language.hidden_size
        table = torch.zeros(num_tiles * per_tile + 2, width, dtype=self.dtype, device=self.device)
        table[NEWLINE_ROW] = self.image_newline
        table[SEPARATOR_ROW] = self.view_separator
        return table

    def embed(self, step: StepInputs, features: torch.Tensor) -> torch.Tensor:
        """Token embeddings, with picture tokens taken from the feature table: [T, C]."""
        embeds = self.decoder.embed_tokens[step.token_ids]
        if len(step.image_rows):
            embeds[step.image_rows] = features[step.image_sources]
        return embeds

    def forward(self, step: StepInputs, features: torch.Tensor, pool: KVPool) -> torch.Tensor:
        """One step: writes the cache, returns logits [L, V] float32 of the tokens whose next one is wanted."""
        hidden = self.decoder(self.embed(step, features), step, pool)
        rows = pad_rows(hidden[: step.num_logits], step.rounding.up(step.num_logits))
        return self.decoder.logits(rows, step.rounding.is_exact)[: step.num_logits]
