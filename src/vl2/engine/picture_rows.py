"""Which tokens of a chunk are a picture's, and which encoded tile each of them shows. No tensor is seen here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from vl2.core.model_config import ModelConfig
from vl2.core.tiling import TileGeometry, image_layout
from vl2.engine.scheduler import Chunk, TileJob


def image_tokens(chunk: Chunk, geometry: TileGeometry) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """(positions, rows of the feature table) of the picture tokens in a chunk, which may cut a span anywhere."""
    for index, span in chunk.sequence.spans_within(chunk.start, chunk.end):
        first, last = max(chunk.start, span.start), min(chunk.end, span.start + span.length)
        layout = image_layout(span.tiles_wide, span.tiles_high, geometry)[first - span.start : last - span.start]
        slots = np.asarray(chunk.sequence.tile_slots[index])
        tile, row = np.divmod(layout, geometry.tokens_per_tile)
        sources = slots[np.maximum(tile, 0)] * geometry.tokens_per_tile + row
        yield np.arange(first, last), np.where(layout < 0, layout, sources)


def tile_pixels(jobs: Sequence[TileJob]) -> np.ndarray:
    """[N, side, side, 3] uint8 of the tiles to encode."""
    return np.stack([job.sequence.prompt.tiles[job.tile_idx] for job in jobs])


def max_span_tiles(config: ModelConfig) -> int:
    """Tiles of the largest picture, global view included: a feature table must hold at least these."""
    side = config.tile_geometry.side
    return 1 + max(width * height // side**2 for width, height in config.candidate_resolutions)
