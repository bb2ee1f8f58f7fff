"""Picture size → tiles → tokens, against the official choice for 413 sizes."""

from __future__ import annotations

from golden_cases import read_json
from vl2.core.tiling import (
    NEWLINE_ROW,
    SEPARATOR_ROW,
    TileGeometry,
    best_resolution,
    image_layout,
    num_image_tokens,
    tile_grid,
)

RESOLUTIONS = read_json("resolutions.json")
CANDIDATES = tuple((width, height) for width, height in RESOLUTIONS["candidate_resolutions"])
OFFICIAL = TileGeometry(side=384, patch_size=14, downsample_ratio=2, candidates=CANDIDATES)
TINY = TileGeometry(side=4, patch_size=1, downsample_ratio=2, candidates=((4, 4), (8, 4)))  # a grid of 2 × 2 tokens


def test_the_best_resolution_is_the_official_one_for_every_size():
    assert len(RESOLUTIONS["cases"]) >= 413
    for width, height, best_width, best_height in RESOLUTIONS["cases"]:
        assert best_resolution(width, height, CANDIDATES) == (best_width, best_height), (width, height)


def test_a_span_has_the_official_number_of_tokens():
    grids = {(1, 1): 421, (3, 3): 2017, (1, 9): 2101, (9, 1): 1989}
    assert {grid: num_image_tokens(*grid, OFFICIAL) for grid in grids} == grids


def test_the_layout_is_as_long_as_the_span_and_uses_every_feature_once():
    for grid in ((1, 1), (3, 1), (1, 3), (3, 3)):
        layout = image_layout(*grid, OFFICIAL).tolist()
        num_features = (1 + grid[0] * grid[1]) * OFFICIAL.tokens_per_tile
        assert len(layout) == num_image_tokens(*grid, OFFICIAL)
        assert sorted(row for row in layout if row >= 0) == list(range(num_features))


def test_local_rows_run_across_all_tiles_of_a_tile_row():
    n, s = NEWLINE_ROW, SEPARATOR_ROW
    assert image_layout(2, 1, TINY).tolist() == [0, 1, n, 2, 3, n, s, 4, 5, 8, 9, n, 6, 7, 10, 11, n]


def test_the_global_view_can_come_last():
    n, s = NEWLINE_ROW, SEPARATOR_ROW
    tail = TileGeometry(TINY.side, TINY.patch_size, TINY.downsample_ratio, TINY.candidates, is_global_first=False)
    assert image_layout(1, 1, tail).tolist() == [4, 5, n, 6, 7, n, s, 0, 1, n, 2, 3, n]


def test_more_than_two_pictures_are_not_tiled():
    assert tile_grid(1152, 384, 2, OFFICIAL) == (3, 1)
    assert tile_grid(1152, 384, 3, OFFICIAL) == (1, 1)
