from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from golden_cases import GOLDEN_ROOT
from vl2.core.errors import InvalidImage
from vl2.core.types import Message
from vl2.processing import processor as processing
from vl2.processing.picture_cache import CutPicture, PictureCache

GRAY = (GOLDEN_ROOT / "images" / "extra" / "gray.png").read_bytes()


def cut_of(num_bytes: int) -> CutPicture:
    return CutPicture(1, 1, 1, 1, np.zeros(num_bytes, np.uint8), ())


@pytest.fixture
def opened(monkeypatch) -> list[object]:
    """Every picture that is decoded."""
    sources: list[object] = []
    original = processing.open_image

    def note(source, limits):
        sources.append(source)
        return original(source, limits)

    monkeypatch.setattr(processing, "open_image", note)
    return sources


def ask(processor, *pictures, tenant=""):
    return processor.process([Message("user", "<image>" * len(pictures) + "Which?", pictures)], tenant)


def test_a_picture_is_decoded_once_and_its_prompt_is_the_same(processor, opened):
    first, second = ask(processor, GRAY), ask(processor, bytearray(GRAY))
    assert len(opened) == 1
    assert (first.token_ids, first.spans, first.tile_keys) == (second.token_ids, second.spans, second.tile_keys)
    assert np.array_equal(first.tiles, second.tiles)


def test_tenants_do_not_share_pictures(processor, opened):
    for tenant in ("a", "b", "a"):
        ask(processor, GRAY, tenant=tenant)
    assert len(opened) == 2


def test_a_file_s_tiles_have_keys_by_its_bytes_and_their_place(processor):
    file = io.BytesIO()
    Image.new("RGB", (228, 76), "red").save(file, "PNG")
    alone, among_three = ask(processor, file.getvalue()), ask(processor, *[file.getvalue()] * 3)
    assert len(set(alone.tile_keys)) == 4, "all tiles look alike, but each has its own place"
    assert set(among_three.tile_keys) == {alone.tile_keys[0]}, "one tile is the whole view"
    assert set(ask(processor, GRAY).tile_keys).isdisjoint(alone.tile_keys)


def test_a_wide_picture_is_cut_anew_where_it_is_not_tiled(processor, opened):
    file = io.BytesIO()
    Image.new("RGB", (228, 76)).save(file, "PNG")
    alone, among_three = ask(processor, file.getvalue()), ask(processor, *[file.getvalue()] * 3)
    assert (alone.spans[0].num_tiles, among_three.spans[0].num_tiles) == (4, 2)
    assert len(opened) == 2


def test_tiles_cannot_be_changed_by_a_request(processor):
    with pytest.raises(ValueError, match="read-only"):
        ask(processor, GRAY).tiles[0] = 0


def test_what_is_no_picture_is_refused_again(processor):
    for _ in range(2):
        with pytest.raises(InvalidImage):
            ask(processor, b"nonsense")


def test_the_least_recently_used_picture_gives_way():
    cache, made = PictureCache(max_bytes=100), []

    def get(name: bytes, num_bytes: int = 40) -> None:
        cache.get(name, ("", True), lambda: (made.append(name), cut_of(num_bytes))[1])

    for name in (b"a", b"b", b"a", b"c", b"a", b"b"):  # at c, b is the oldest
        get(name)
    assert made == [b"a", b"b", b"c", b"b"]
    get(b"large", 101)
    get(b"large", 101)
    assert made[-2:] == [b"large", b"large"]
