"""A conversation → what the model sees: ids, tiles, and where each picture stands."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vl2.core.config import ProcessorConfig
from vl2.core.errors import RequestError
from vl2.core.model_config import ModelConfig
from vl2.core.tiling import MAX_TILED_IMAGES, num_image_tokens, tile_grid
from vl2.core.types import ImagePart, ImageSource, ImageSpan, Message, Prompt
from vl2.processing.chat import chat_segments, text_segments
from vl2.processing.checkpoint_files import check_processor_config
from vl2.processing.images import make_tiles, open_image, tile_key
from vl2.processing.picture_cache import CutPicture, PictureCache
from vl2.processing.resample import spread
from vl2.processing.tokenizer import Tokenizer

PICTURE_CACHE_BYTES = 128 * 2**20
"""Of tiles that are kept, 0.4 MB each: about 40 pictures of six tiles."""


class Processor:
    """Of one checkpoint. Holds no state of requests but pictures cut before: any number of threads may use it."""

    def __init__(self, folder: Path, model_config: ModelConfig, limits: ProcessorConfig = ProcessorConfig()) -> None:
        """Raises: CheckpointError."""
        check_processor_config(folder, model_config)
        self.tokenizer = Tokenizer.from_folder(folder, model_config.language.vocab_size)
        self.geometry = model_config.tile_geometry
        self.limits = limits
        self._pictures = PictureCache(PICTURE_CACHE_BYTES)

    def process(self, messages: Sequence[Message], tenant: str = "") -> Prompt:
        """A conversation in the chat format of `chat.py`; pictures are taken in order over all messages.

        `tenant`: whose earlier pictures may be used again (see `picture_cache.py`).

        Raises: InvalidRequest, InvalidImage, TooLarge.
        """
        is_official = self.limits.special_tokens == "official"
        segments = chat_segments(messages, self.tokenizer, is_official=is_official)
        return self._join(segments, [image for message in messages for image in message.images], tenant)

    def process_text(self, prompt: str, images: Sequence[ImageSource] = ()) -> Prompt:
        """A plain prompt: BOS and the text, with one `<image>` for each picture.

        Raises: InvalidRequest, InvalidImage, TooLarge.
        """
        return self._join(text_segments(prompt, len(images), self.tokenizer), images)

    def _join(self, segments: list[list[int]], sources: Sequence[ImageSource | ImagePart], tenant: str = "") -> Prompt:
        """Put the pictures between the segments."""
        token_ids = list(segments[0])
        spans: list[ImageSpan] = []
        pictures: list[CutPicture] = []
        num_tiles = 0
        for idx, source in enumerate(sources):
            try:
                part = source if isinstance(source, ImagePart) else ImagePart(source)
                is_tiled = len(sources) <= MAX_TILED_IMAGES and not part.is_low_detail
                picture = self._cut(part.source, is_tiled, tenant)
            except RequestError as error:
                raise type(error)(f"picture {idx + 1}: {error.message}", param="messages") from None
            across, down = picture.tiles_wide, picture.tiles_high
            length = num_image_tokens(across, down, self.geometry)
            spans.append(
                ImageSpan(
                    len(token_ids), length, num_tiles, len(picture.tiles), across, down, picture.width, picture.height
                )
            )
            pictures.append(picture)
            num_tiles += len(picture.tiles)
            token_ids += [self.tokenizer.image_id] * length + segments[idx + 1]
        keys = tuple(key for picture in pictures for key in picture.tile_keys)
        return Prompt(token_ids, tuple(spans), self._all_tiles(pictures), keys)

    def _cut(self, source: ImageSource, is_tiled: bool, tenant: str) -> CutPicture:
        """`is_tiled`: as its size asks for; else it has one local tile. Raises: InvalidImage, TooLarge."""
        if isinstance(source, (bytes, bytearray, memoryview)) and len(source) <= self.limits.max_image_bytes:
            # Half of BLAKE2b's time with SHA instructions (AMD Zen, Intel servers from Ice Lake on), twice without
            digest = hashlib.sha256(source).digest()
            return self._pictures.get(digest, (tenant, is_tiled), lambda: self._cut_anew(source, is_tiled, digest))
        return self._cut_anew(source, is_tiled, None)

    def _cut_anew(self, source: ImageSource, is_tiled: bool, digest: bytes | None) -> CutPicture:
        """`digest` of the file that it is."""
        image = open_image(source, self.limits)
        grid = tile_grid(image.width, image.height, 1, self.geometry) if is_tiled else (1, 1)
        tiles = make_tiles(image, grid, self.geometry)
        tiles.flags.writeable = False
        keys = self._pixel_keys(tiles) if digest is None else self._file_keys(digest, grid)
        return CutPicture(image.width, image.height, *grid, tiles, tuple(keys))

    def _all_tiles(self, pictures: list[CutPicture]) -> np.ndarray:
        if len(pictures) == 1:
            return pictures[0].tiles
        no_tiles = np.empty((0, self.geometry.side, self.geometry.side, 3), np.uint8)
        return np.concatenate([no_tiles, *(picture.tiles for picture in pictures)])

    def _pixel_keys(self, tiles: np.ndarray) -> list[bytes]:
        """The two tiles of a one-tile picture are equal: hashed once."""
        if len(tiles) == 2:
            return [tile_key(tiles[0], self.geometry)] * 2
        return spread(lambda tile: tile_key(tile, self.geometry), tiles)

    def _file_keys(self, digest: bytes, grid: tuple[int, int]) -> list[bytes]:
        """What a file becomes follows from its bytes, far fewer than its pixels. The whole view, which is also the
        only tile of one tile, is the same in every grid.
        """
        across, down = grid
        whole = hashlib.blake2b(f"{self.geometry}{self.limits.exif}".encode() + digest, digest_size=32)
        if across == down == 1:
            return [whole.digest()] * 2
        keys = [whole.digest()]
        for tile in range(across * down):
            part = whole.copy()
            part.update(f"{across}×{down}:{tile}".encode())
            keys.append(part.digest())
        return keys
