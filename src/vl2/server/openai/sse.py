"""Chat completions as server-sent events, ending in [DONE]."""

from __future__ import annotations

from collections.abc import Iterator

from vl2.core.errors import VL2Error
from vl2.core.types import Delta
from vl2.server.errors import error_body
from vl2.server.events import encode
from vl2.server.openai.render import ChatRenderer

DONE = b"data: [DONE]\n\n"


class ChatEvents:
    def __init__(self, renderer: ChatRenderer) -> None:
        self._renderer = renderer

    def write(self, delta: Delta) -> Iterator[bytes]:
        return map(encode, self._renderer.chunks(delta))

    def fail(self, error: VL2Error) -> bytes:
        return encode(error_body(error))

    def end(self) -> bytes:
        return DONE
