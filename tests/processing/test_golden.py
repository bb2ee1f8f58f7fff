"""The processor against the official code: ids, masks, crops and labels equal; pixels equal, byte by byte."""

from __future__ import annotations

import json

import numpy as np
import pytest

from golden_cases import GoldenCase, load_variant, load_variants, tile_sha256, unfold_rle
from vl2.core.config import ProcessorConfig
from vl2.core.model_config import parse_model_config
from vl2.core.types import Message, Prompt
from vl2.processing.processor import Processor

AS_OFFICIAL = ProcessorConfig(special_tokens="official", exif="official")
ALL_CASES = [case for variant in load_variants() for case in variant.cases + variant.processor_cases]


@pytest.fixture(scope="module")
def processors() -> dict[str, Processor]:
    made = {}
    for variant in load_variants():
        config = parse_model_config(json.loads((variant.folder / "config.json").read_text()))
        made[variant.name] = Processor(variant.folder, config, AS_OFFICIAL)
    return made


def process(processor: Processor, case: GoldenCase) -> Prompt:
    if not case.is_plain_prompt:
        return processor.process(case.messages)
    if case.meta["apply_sft_format"]:
        return processor.process([Message("user", case.meta["prompt"], tuple(case.image_paths))])
    return processor.process_text(case.meta["prompt"], case.image_paths)


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_token_ids_and_image_places_are_the_official_ones(processors, case):
    prompt = process(processors[case.variant], case)
    mask, labels = np.zeros(len(prompt.token_ids), int), np.array(prompt.token_ids)
    for span in prompt.spans:
        mask[span.start : span.start + span.length] = 1
        labels[span.start : span.start + span.length] = -100

    assert prompt.token_ids == case.input_ids
    crops = [[span.tiles_wide, span.tiles_high] for span in prompt.spans] or [[0, 0]]
    assert crops == case.meta["spatial_crop_wh"]
    if "labels_rle" in case.meta:
        assert mask.tolist() == unfold_rle(case.meta["seq_mask_rle"])
        assert labels.tolist() == unfold_rle(case.meta["labels_rle"])
    else:
        assert mask.tolist() == case.tensors["images_seq_mask"].tolist()
        assert labels.tolist() == case.tensors["labels"].tolist()
        assert [[span.width, span.height] for span in prompt.spans] == case.meta["image_sizes_wh"]


DISPLAYED = [case for case in ALL_CASES if not case.is_plain_prompt and case.name != "img-exif6"]  # that one is turned


@pytest.mark.parametrize("case", DISPLAYED, ids=str)
def test_by_default_only_typed_roles_differ(processors, case):
    folder = load_variant(case.variant).folder
    ours = Processor(folder, parse_model_config(json.loads((folder / "config.json").read_text())))
    are_equal = ours.process(case.messages).token_ids == case.input_ids
    assert are_equal is (case.name != "specials-in-text")


@pytest.mark.parametrize("case", [case for case in ALL_CASES if not case.is_pillow_sensitive], ids=str)
def test_pixels_are_the_official_ones(processors, case):
    prompt = process(processors[case.variant], case)
    assert len(prompt.tiles) == len(prompt.tile_keys) == sum(span.num_tiles for span in prompt.spans)
    hashes = {tile: tile_sha256(prompt.tiles[tile].transpose(2, 0, 1)) for tile in case.pixel_sha256}
    assert hashes == case.pixel_sha256


def test_tall_pictures_differ_only_by_pillows_pass_order(processors):
    """The golden pixels are those of Pillow 13; ours are those of Pillow ≤ 12 on every version."""
    case = load_variant("mla-greedy").case("img-tall")
    ours = process(processors["mla-greedy"], case).tiles.transpose(0, 3, 1, 2).astype(int)
    assert np.abs(ours - case.get("pixel_u8").astype(int)).max() <= 9


def test_normalised_pixels_are_the_official_ones(processors):
    case = load_variant("mla-greedy").case("square")
    tile = process(processors["mla-greedy"], case).tiles[0].transpose(2, 0, 1)
    assert np.array_equal((tile / np.float32(255) - np.float32(0.5)) / np.float32(0.5), case.get("pixel_f32.0"))


def test_special_ids_are_found_by_text(processors):
    for variant in load_variants():
        tokenizer = processors[variant.name].tokenizer
        frame = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.image_id]
        assert frame + list(tokenizer.tag_ids.values()) == list(variant.meta["special_token_ids"].values())
        assert tokenizer.vocab_size == variant.meta["tokenizer_size"]
