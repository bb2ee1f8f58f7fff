"""Answers that were given before: to the very same request of the same tenant, for the same weights."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from PIL import Image

from vl2.core.types import Completion, Delta, ImagePart, Message, SamplingParams, Usage

HEADER = "X-VL2-Result-Cache"
BYTES_PER_TOKEN = 200  # of a kept answer: ids, text, logprobs
ENTRY_BYTES = 1000


def request_digest(messages: Sequence[Message], params: SamplingParams, salt: str) -> bytes | None:
    """Equal digest, equal answer; None for what may be answered differently the next time.

    `salt`: the tenant, its own salt, and what answers.
    """
    is_fixed = params.temperature == 0 or params.seed is not None
    if not is_fixed:
        return None
    digest = hashlib.blake2b(digest_size=32)

    def add(part: bytes) -> None:
        digest.update(len(part).to_bytes(8, "big") + part)

    add(salt.encode("utf-8", "surrogatepass"))
    add(repr(dataclasses.astuple(params)).encode("utf-8", "surrogatepass"))
    for message in messages:
        add(message.role.encode())
        add(message.content.encode("utf-8", "surrogatepass"))
        for given in message.images:
            part = given if isinstance(given, ImagePart) else ImagePart(given)
            picture = picture_bytes(part.source)
            if picture is None:
                return None
            add(b"low" if part.is_low_detail else b"")
            add(picture)
    return digest.digest()


def picture_bytes(source: Any) -> bytes | None:
    """As it was sent; of a page, its pixels. None: a file, which may change."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, Image.Image):
        return repr((source.mode, source.size)).encode() + source.tobytes()
    return None


class ResultCache:
    """Least recently used first out, bounded in bytes by an estimate."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._answers: OrderedDict[bytes, tuple[int, list[Delta]]] = OrderedDict()

    def get(self, digest: bytes) -> list[Delta] | None:
        found = self._answers.get(digest)
        if found is None:
            return None
        self._answers.move_to_end(digest)
        return found[1]

    def put(self, digest: bytes, completion: Completion) -> None:
        num_bytes = ENTRY_BYTES + BYTES_PER_TOKEN * (len(completion.prompt_token_ids) + _num_tokens(completion))
        if num_bytes > self._max_bytes or digest in self._answers:
            return
        self._answers[digest] = (num_bytes, _deltas(completion))
        self._num_bytes += num_bytes
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= self._answers.popitem(last=False)[1][0]


def _num_tokens(completion: Completion) -> int:
    return sum(len(c.token_ids) + sum(len(t.top) for t in c.logprobs) for c in completion.choices)


def _deltas(completion: Completion) -> list[Delta]:
    """The whole answer as one piece a choice."""
    last = len(completion.choices) - 1
    usage = dataclasses.replace(completion.usage, timing=None)
    return [
        Delta(
            choice_idx=idx,
            text=choice.text,
            token_ids=choice.token_ids,
            logprobs=choice.logprobs,
            finish_reason=choice.finish_reason,
            grounding=choice.grounding,
            prompt_token_ids=completion.prompt_token_ids if idx == 0 else None,
            usage=_reused(usage) if idx == last else None,
            stop_string=choice.stop_string,
        )
        for idx, choice in enumerate(completion.choices)
    ]


def _reused(usage: Usage) -> Usage:
    return dataclasses.replace(usage, is_from_result_cache=True)
