"""Chat completions as server-sent events, ending in [DONE]."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from vl2.core.errors import VL2Error
from vl2.core.types import Delta
from vl2.server.errors import error_body
from vl2.server.events import encode
from vl2.server.openai.render import ChatRenderer

DONE = b"data: [DONE]\n\n"
MARK = "\x1atext\x1a"  # of no id, and no model's name


class ChatEvents:
    def __init__(self, renderer: ChatRenderer) -> None:
        self._renderer = renderer
        self._plain: dict[int, tuple[bytes, bytes]] = {}  # choice → its event of a piece of text, around that text

    def write(self, delta: Delta) -> Iterable[bytes]:
        text = self._renderer.plain(delta)
        if text is None:
            return map(encode, self._renderer.chunks(delta))
        if not text:
            return ()
        around = self._plain.get(delta.choice_idx)
        if around is None:
            before, _, behind = encode(self._renderer.plain_chunk(delta.choice_idx, MARK)).partition(_quoted(MARK))
            around = self._plain[delta.choice_idx] = (before, behind)
        return (around[0] + _quoted(text) + around[1],)

    def fail(self, error: VL2Error) -> bytes:
        return encode(error_body(error))

    def end(self) -> bytes:
        return DONE


def _quoted(text: str) -> bytes:
    return msgspec.json.encode(text)
