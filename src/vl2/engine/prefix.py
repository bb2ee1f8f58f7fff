"""Keys of pages: equal key, equal content of the cache rows, to the last bit.

A page's rows depend on everything before them, so keys are chained: (key of the page before, ids of the page,
pictures that overlap it). The chain begins with the weights' fingerprint and the tenant's salt, so that neither another
model nor another tenant can ever meet a page, or learn from timing that a prompt was asked before.
"""

from __future__ import annotations

import hashlib

import numpy as np

from vl2.core.types import ImageSpan, Prompt


class PageKeys:
    """Keys of a sequence's full pages, computed as it grows and kept."""

    def __init__(self, prompt: Prompt, salt: str, page_size: int, fingerprint: bytes = b"") -> None:
        """Without a fingerprint the keys hold within one model, as for the router, which has no weights to ask."""
        self._page_size = page_size
        self._root = _digest(fingerprint, salt.encode())
        self._pictures = [(span, _picture_key(prompt, span)) for span in prompt.spans]
        self._keys: list[bytes] = []

    def __copy__(self) -> PageKeys:
        """For another choice of the same request: equal so far, growing apart with what each generates."""
        twin = object.__new__(PageKeys)
        twin.__dict__ = {**self.__dict__, "_keys": self._keys.copy()}
        return twin

    def upto(self, token_ids: list[int], num_tokens: int) -> list[bytes]:
        """Keys of the pages that the first `num_tokens` tokens fill."""
        num_pages = num_tokens // self._page_size
        for page in range(len(self._keys), num_pages):
            start, end = page * self._page_size, (page + 1) * self._page_size
            parent = self._keys[-1] if self._keys else self._root
            ids = np.asarray(token_ids[start:end], dtype=np.int64).tobytes()
            overlapping = [
                key + (span.start - start).to_bytes(8, "big", signed=True)
                for span, key in self._pictures
                if span.start < end and start < span.start + span.length
            ]
            self._keys.append(_digest(parent, ids, *overlapping))
        return self._keys[:num_pages]


def _picture_key(prompt: Prompt, span: ImageSpan) -> bytes:
    """Of a picture's tiles and how they are laid out."""
    tiles = prompt.tile_keys[span.first_tile : span.first_tile + span.num_tiles]
    return _digest(bytes((span.tiles_wide, span.tiles_high)), *tiles)


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
