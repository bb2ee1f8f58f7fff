"""A conversation → what the model sees: ids, tiles, and where each picture stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vl2.core.config import ProcessorConfig
from vl2.core.errors import RequestError
from vl2.core.model_config import ModelConfig
from vl2.core.tiling import num_image_tokens, tile_grid
from vl2.core.types import ImageSource, ImageSpan, Message, Prompt
from vl2.processing.chat import chat_segments, text_segments
from vl2.processing.checkpoint_files import check_processor_config
from vl2.processing.images import make_tiles, open_image, tile_key
from vl2.processing.tokenizer import Tokenizer


class Processor:
    """Of one checkpoint. Holds no state of requests: any number of threads may use it."""

    def __init__(self, folder: Path, model_config: ModelConfig, limits: ProcessorConfig = ProcessorConfig()) -> None:
        """Raises: CheckpointError."""
        check_processor_config(folder, model_config)
        self.tokenizer = Tokenizer.from_folder(folder, model_config.language.vocab_size)
        self.geometry = model_config.tile_geometry
        self.limits = limits

    def process(self, messages: Sequence[Message]) -> Prompt:
        """A conversation in the chat format of `chat.py`; pictures are taken in order over all messages.

        Raises: InvalidRequest, InvalidImage, TooLarge.
        """
        segments = chat_segments(messages, self.tokenizer)
        return self._join(segments, [image for message in messages for image in message.images])

    def process_text(self, prompt: str, images: Sequence[ImageSource] = ()) -> Prompt:
        """A plain prompt: BOS and the text, with one `<image>` for each picture.

        Raises: InvalidRequest, InvalidImage, TooLarge.
        """
        return self._join(text_segments(prompt, len(images), self.tokenizer), images)

    def _join(self, segments: list[list[int]], sources: Sequence[ImageSource]) -> Prompt:
        """Put the pictures between the segments."""
        token_ids = list(segments[0])
        spans: list[ImageSpan] = []
        tiles: list[np.ndarray] = []
        keys: list[bytes] = []
        for idx, source in enumerate(sources):
            try:
                image = open_image(source, self.limits)
            except RequestError as error:
                raise type(error)(f"picture {idx + 1}: {error.message}", param="messages") from None
            across, down = tile_grid(image.width, image.height, len(sources), self.geometry)
            length = num_image_tokens(across, down, self.geometry)
            spans.append(
                ImageSpan(len(token_ids), length, len(keys), 1 + across * down, across, down, image.width, image.height)
            )
            tiles.append(make_tiles(image, (across, down), self.geometry))
            keys += self._tile_keys(tiles[-1])
            token_ids += [self.tokenizer.image_id] * length + segments[idx + 1]
        no_tiles = np.empty((0, self.geometry.side, self.geometry.side, 3), np.uint8)
        return Prompt(token_ids, tuple(spans), np.concatenate(tiles) if tiles else no_tiles, tuple(keys))

    def _tile_keys(self, tiles: np.ndarray) -> list[bytes]:
        """The two tiles of a one-tile picture are equal: hashed once."""
        if len(tiles) == 2:
            return [tile_key(tiles[0], self.geometry)] * 2
        return [tile_key(tile, self.geometry) for tile in tiles]
