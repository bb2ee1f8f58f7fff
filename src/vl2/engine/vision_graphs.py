"""The vision tower and projector as CUDA graphs, for a few numbers of tiles; between them a batch is filled up.

Torch's attention chooses a kernel by the number of tiles, too. Where a tile's bits must not depend on the others, only
those numbers have a graph that give it the bits that it has alone, which is tried.
"""

from __future__ import annotations

import logging

import numpy as np
import torch

from vl2.engine.capture import capture
from vl2.model.vl2 import DeepseekVL2

log = logging.getLogger(__name__)

SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)


class VisionGraphs:
    """Captured at the start, from the largest to the smallest, so that all share the largest one's memory."""

    def __init__(self, model: DeepseekVL2, features: torch.Tensor, max_tiles: int, is_exact: bool = False) -> None:
        """features [slots · Q + 2, C]: the table that encoded tiles go to."""
        self.model, largest = model, min(max_tiles, SIZES[-1])
        self._slots_table = features[:-2].unflatten(0, (-1, model.config.tile_geometry.tokens_per_tile))
        self._memory = torch.cuda.graph_pool_handle()
        self.graphs: dict[int, tuple[torch.Tensor, torch.Tensor, torch.cuda.CUDAGraph]] = {}
        for num_tiles in sorted({*(size for size in SIZES if size < largest), largest}, reverse=True):
            if not is_exact or self._agrees(num_tiles):
                self._capture(num_tiles)
        self.max_tiles = max(self.graphs)

    def _agrees(self, num_tiles: int) -> bool:
        """Whether the first and the last of so many tiles have the bits that they have alone."""
        side, device = self.model.config.tile_geometry.side, self.model.device
        generator = torch.Generator(device).manual_seed(0)
        tiles = torch.randint(256, (num_tiles, side, side, 3), generator=generator, device=device).to(torch.uint8)
        together = self.model.encode_tiles(tiles)
        agrees = all(torch.equal(together[place], self.model.encode_tiles(tiles[place][None])[0]) for place in (0, -1))
        if not agrees:
            log.info("deterministic: %d tiles at once would have other bits", num_tiles)
        return agrees

    def encode(self, tiles: np.ndarray, slots: list[int]) -> None:
        """tiles [N, side, side, 3] uint8 → feature slots; returns at once."""
        for start in range(0, len(slots), self.max_tiles):
            self._encode(tiles[start : start + self.max_tiles], slots[start : start + self.max_tiles])

    def _encode(self, tiles: np.ndarray, slots: list[int]) -> None:
        size = min(size for size in self.graphs if size >= len(slots))
        static_tiles, static_slots, graph = self.graphs[size]
        static_tiles[: len(slots)].copy_(torch.from_numpy(tiles).pin_memory(), non_blocking=True)
        if size > len(slots):  # the last tile again, into its own slot
            static_tiles[len(slots) :].copy_(static_tiles[len(slots) - 1].expand(size - len(slots), -1, -1, -1))
            slots = slots + slots[-1:] * (size - len(slots))
        static_slots.copy_(torch.tensor(slots).pin_memory(), non_blocking=True)
        graph.replay()

    def _capture(self, num_tiles: int) -> None:
        side, device = self.model.config.tile_geometry.side, self.model.device
        tiles = torch.zeros(num_tiles, side, side, 3, dtype=torch.uint8, device=device)
        slots = torch.arange(num_tiles, device=device) % len(self._slots_table)

        def encode() -> None:
            self._slots_table[slots] = self.model.encode_tiles(tiles)

        graph, _ = capture(encode, self._memory)
        self.graphs[num_tiles] = tiles, slots, graph
