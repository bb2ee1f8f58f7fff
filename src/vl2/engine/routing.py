"""Which replica a request goes to. Plain book-keeping of what was sent where; no I/O, and nothing is asked of engines.

The rule: a request goes where `open work + 2 × what it would have to compute there` is smallest. Both are in tokens:

- open work of a replica: the prompt tokens it has still to compute, and `TOKENS_PER_ANSWER` for every answer under way;
- what a request has to compute there: the prompt behind the prefix that the replica has seen, and `TOKENS_PER_TILE` for
  each picture tile that it has not.

So a conversation stays with the replica that has its beginning, and a picture with the one that has encoded it, until
that replica is behind by more work than starting afresh elsewhere is worth. Starting afresh counts double: it delays
this request, and takes the time from others. Equal scores go to the replica whose last request is longest ago.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vl2.core.types import Prompt
from vl2.engine.prefix import PageKeys

BLOCK_TOKENS = 128
"""Prefixes are remembered in steps of so many tokens; a shorter prompt leaves no trace but its pictures."""

TOKENS_PER_ANSWER = 256
TOKENS_PER_TILE = 256
COMPUTE_WEIGHT = 2
MAX_BLOCKS = 8192
"""Blocks remembered of one replica: a million tokens, more than its KV cache holds."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a replica keeps of a prompt once it has computed it."""

    num_tokens: int
    blocks: tuple[bytes, ...]  # chained: equal digest, equal prompt from its start to the end of this block
    tiles: tuple[bytes, ...]  # each once


def footprint(prompt: Prompt, salt: str = "") -> Footprint:
    """Blocks have the keys that pages of this size would have in the prefix cache."""
    blocks = PageKeys(prompt, salt, BLOCK_TOKENS).upto(prompt.token_ids, len(prompt.token_ids))
    return Footprint(len(prompt.token_ids), tuple(blocks), tuple(dict.fromkeys(prompt.tile_keys)))


class _Recent:
    """The `capacity` keys that were used last."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._keys: OrderedDict[bytes, None] = OrderedDict()  # oldest first

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def use(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._keys[key] = None
            self._keys.move_to_end(key)
        while len(self._keys) > self._capacity:
            self._keys.popitem(last=False)

    def clear(self) -> None:
        self._keys.clear()


@dataclass(slots=True)
class Work:
    """An open request's share of its replica's work."""

    replica_idx: int
    prompt_tokens: int  # to compute, tiles included; 0 once its first token has come
    answer_tokens: int


@dataclass(slots=True)
class _Replica:
    blocks: _Recent
    tiles: _Recent
    last_used: int = -1  # number of the last request that it got
    works: list[Work] = field(default_factory=list)

    @property
    def open_tokens(self) -> int:
        return sum(work.prompt_tokens + work.answer_tokens for work in self.works)

    def tokens_to_compute(self, wanted: Footprint) -> int:
        num_known = 0
        while num_known < len(wanted.blocks) and wanted.blocks[num_known] in self.blocks:
            num_known += 1
        num_new_tiles = sum(tile not in self.tiles for tile in wanted.tiles)
        return wanted.num_tokens - num_known * BLOCK_TOKENS + num_new_tiles * TOKENS_PER_TILE


class Router:
    """Knows of each replica what it was sent lately, and what of that is still open."""

    def __init__(self, num_replicas: int, *, max_tiles: int) -> None:
        """`max_tiles`: encoded tiles that a replica keeps."""
        self._replicas = [_Replica(_Recent(MAX_BLOCKS), _Recent(max_tiles)) for _ in range(num_replicas)]
        self._num_requests = 0

    def ranking(self, wanted: Footprint, candidates: Sequence[int]) -> list[int]:
        """`candidates`, the best first."""

        def score(idx: int) -> tuple[int, int]:
            replica = self._replicas[idx]
            return replica.open_tokens + COMPUTE_WEIGHT * replica.tokens_to_compute(wanted), replica.last_used

        return sorted(candidates, key=score)

    def open(self, idx: int, wanted: Footprint, num_answers: int) -> Work:
        """The request goes there: count its work until `close`, and remember what the replica will have of it."""
        replica = self._replicas[idx]
        work = Work(idx, replica.tokens_to_compute(wanted), num_answers * TOKENS_PER_ANSWER)
        replica.works.append(work)
        replica.last_used, self._num_requests = self._num_requests, self._num_requests + 1
        replica.blocks.use(reversed(wanted.blocks))  # the beginning last: without it the rest is worth nothing
        replica.tiles.use(wanted.tiles)
        return work

    def close(self, work: Work) -> None:
        works = self._replicas[work.replica_idx].works
        del works[next(i for i, other in enumerate(works) if other is work)]

    def forget(self, idx: int) -> None:
        """The replica starts with empty caches; work that is open is closed by whoever opened it."""
        self._replicas[idx].blocks.clear()
        self._replicas[idx].tiles.clear()
