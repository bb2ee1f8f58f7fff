from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from golden_cases import GOLDEN_ROOT, load_variant
from vl2.core.errors import CheckpointError, InvalidImage, TooLarge
from vl2.core.model_config import parse_model_config
from vl2.core.types import Message
from vl2.processing.processor import Processor

EXTRA = GOLDEN_ROOT / "images" / "extra"


def test_spans_say_where_each_picture_and_its_tiles_are(processor):
    wide, gray = Image.new("RGB", (228, 76)), Image.new("RGB", (50, 50), "gray")
    prompt = processor.process([Message("user", "<image>\n<image>\nWhich?", (wide, gray))])
    first, second = prompt.spans
    assert (first.tiles_wide, first.tiles_high, first.first_tile, first.num_tiles) == (3, 1, 0, 4)
    assert (second.first_tile, second.num_tiles, second.width, second.height) == (4, 2, 50, 50)
    for span in prompt.spans:
        assert set(prompt.token_ids[span.start : span.start + span.length]) == {processor.tokenizer.image_id}
    assert prompt.token_ids.count(processor.tokenizer.image_id) == prompt.num_image_tokens
    assert prompt.tiles.shape == (6, 76, 76, 3)


def test_equal_tiles_share_a_key(processor):
    gray = EXTRA / "gray.png"
    prompt = processor.process([Message("user", "<image><image>", (gray, gray))])
    assert len(prompt.tile_keys) == 4
    assert len(set(prompt.tile_keys)) == 1


def test_without_pictures_there_are_no_tiles(processor):
    prompt = processor.process([Message("user", "Hi")])
    assert (prompt.spans, prompt.tile_keys, prompt.tiles.shape) == ((), (), (0, 76, 76, 3))


def test_errors_name_the_picture(processor):
    good = EXTRA / "gray.png"
    for bad, error in (
        (b"nonsense", InvalidImage),
        (bytes(60_000), TooLarge),
        (Image.new("L", (999, 999)), InvalidImage),
    ):
        with pytest.raises(error, match=r"^picture 2: ") as caught:
            processor.process([Message("user", "<image><image>", (good, bad))])
        assert caught.value.param == "messages"


def test_threads_get_the_same_as_one_after_another(processor):
    names = ["gray", "rgba", "palette", "near2x2", "one"] * 4
    conversations = [[Message("user", f"<image>{name}", (EXTRA / f"{name}.png",))] for name in names]
    alone = [processor.process(messages) for messages in conversations]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(processor.process, conversations))
    for one, other in zip(alone, together, strict=True):
        assert one.token_ids == other.token_ids
        assert one.tile_keys == other.tile_keys
        assert np.array_equal(one.tiles, other.tiles)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_mean", [0.48, 0.46, 0.41]),
        ("image_std", [0.27, 0.26, 0.28]),
        ("normalize", False),
        ("candidate_resolutions", [[76, 76]]),
        ("patch_size", 16),
        ("sft_format", "llama"),
    ],
)
def test_another_preprocessing_than_ours_is_refused(tmp_path, key, value):
    folder = tmp_path / "ckpt"
    shutil.copytree(load_variant("mla-greedy").folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    raw = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps(raw | {key: value}))
    with pytest.raises(CheckpointError, match=rf"processor_config\.json: {key} is "):
        Processor(folder, parse_model_config(json.loads((folder / "config.json").read_text())))
