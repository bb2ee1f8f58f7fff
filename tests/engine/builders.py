"""Small prompts and requests for engine tests; no model, no pictures from disk."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import numpy as np

from vl2.core.tiling import TileGeometry, num_image_tokens
from vl2.core.types import GenerateRequest, ImageSpan, Prompt, QueueOptions, SamplingParams
from vl2.engine.image_cache import TileCache
from vl2.engine.pacing import Pacer
from vl2.engine.pages import PagePool
from vl2.engine.prefix import PageKeys
from vl2.engine.scheduler import Scheduler
from vl2.engine.sequence import Sequence

GEOMETRY = TileGeometry(side=28, patch_size=14, downsample_ratio=2, candidates=((28, 28), (56, 28)))
"""One token a tile: a picture with one local tile has 2 + 1 + 2 tokens."""

IMAGE_ID, EOS_ID = 9, 1
PAGE_SIZE = 4
_ids = itertools.count()


def text_prompt(*token_ids: int) -> Prompt:
    return Prompt(list(token_ids), (), np.zeros((0, 28, 28, 3), np.uint8), ())


def picture_prompt(*pictures: bytes, before: tuple[int, ...] = (0,), after: tuple[int, ...] = (5, 6)) -> Prompt:
    """`before`, then each picture (one local tile each, equal bytes are equal pictures), then `after`."""
    length = num_image_tokens(1, 1, GEOMETRY)
    spans = [ImageSpan(len(before) + i * length, length, 2 * i, 2, 1, 1, 28, 28) for i, _ in enumerate(pictures)]
    keys = [hashlib.blake2b(picture + view, digest_size=32).digest() for picture in pictures for view in (b"g", b"l")]
    token_ids = [*before, *[IMAGE_ID] * (length * len(pictures)), *after]
    return Prompt(token_ids, tuple(spans), np.zeros((len(keys), 28, 28, 3), np.uint8), tuple(keys))


def request(prompt: Prompt, options: QueueOptions = QueueOptions(), **params: Any) -> GenerateRequest:
    params = {"max_tokens": 4, "seed": 0, **params}
    return GenerateRequest(f"request-{next(_ids)}", prompt, SamplingParams(**params), options)


def sequence(
    prompt: Prompt,
    max_context_tokens: int = 1000,
    *,
    arrival_s: float = 0.0,
    options: QueueOptions = QueueOptions(),
    **params,
) -> Sequence:
    """Shares prefixes with all others of its kind and salt."""
    asked = request(prompt, options, **params)
    return Sequence(
        asked,
        0,
        max_context_tokens,
        arrival_s=arrival_s,
        page_keys=PageKeys(prompt, options.cache_salt, PAGE_SIZE, b"weights"),
    )


def scheduler(
    *, pages: int = 100, slots: int = 8, sequences: int = 8, tokens: int = 64, tiles: int = 4, replays: bool = False
) -> Scheduler:
    return Scheduler(
        PagePool(pages, PAGE_SIZE),
        TileCache(slots),
        Pacer(tokens, tiles),
        max_sequences=sequences,
        eos_token_id=EOS_ID,
        replays=replays,
    )
