"""no_repeat_ngram_size: which tokens would repeat an n-gram that was already there."""

from __future__ import annotations

from collections import defaultdict

from vl2.core.types import Prompt


class NgramIndex:
    """All n-grams of a sequence by their first n - 1 tokens, grown as the sequence grows.

    N-grams that touch a picture are not counted: its tokens all have the same id and mean nothing here.
    """

    def __init__(self, size: int, prompt: Prompt) -> None:
        self.size = size
        self._image_positions = {
            position for span in prompt.spans for position in range(span.start, span.start + span.length)
        }
        self._followers: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        self._num_indexed = 0

    def banned(self, token_ids: list[int]) -> set[int]:
        """Tokens that must not follow `token_ids`, which has only grown since the last call."""
        for end in range(max(self._num_indexed, self.size - 1), len(token_ids)):
            start = end - self.size + 1
            if self._image_positions.isdisjoint(range(start, end + 1)):
                self._followers[tuple(token_ids[start:end])].add(token_ids[end])
        self._num_indexed = len(token_ids)
        return self._followers.get(tuple(token_ids[len(token_ids) - self.size + 1 :]), set())
