from __future__ import annotations

import json

import pytest

from golden_cases import load_variant
from vl2.core.config import ProcessorConfig
from vl2.core.model_config import parse_model_config
from vl2.processing.processor import Processor
from vl2.processing.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A byte-level BPE of 571 tokens: all bytes, some merges of English and Chinese, the official special tokens."""
    return Tokenizer.from_folder(load_variant("mla-greedy").folder)


@pytest.fixture(scope="session")
def processor() -> Processor:
    """Of tiny tiles (76 pixels, 3 × 3 tokens), with low limits: 100,000 pixels, 50,000 bytes."""
    folder = load_variant("mla-greedy").folder
    config = parse_model_config(json.loads((folder / "config.json").read_text()))
    return Processor(folder, config, ProcessorConfig(max_image_bytes=50_000, max_image_pixels=100_000))
