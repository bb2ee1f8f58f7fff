"""An answer under way → server-sent events, ending in [DONE] whatever happens."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from vl2.core.errors import VL2Error
from vl2.server.access import RequestRecord
from vl2.server.chat import Answer
from vl2.server.errors import ServerStopping, error_body, internal_error
from vl2.server.openai.render import ChatRenderer

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


def encode(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n\n"


def stopping_events(record: RequestRecord) -> bytes:
    """The end of a stream that the server cuts because it stops."""
    error = ServerStopping()
    record.fail(error)
    return encode(error_body(error)) + DONE


async def chat_events(answer: Answer, renderer: ChatRenderer, record: RequestRecord) -> AsyncIterator[bytes]:
    """An error in the middle becomes an event of its own: the status line is out, and the client must not wait."""
    try:
        async for delta in answer:
            for chunk in renderer.chunks(delta):
                yield encode(chunk)
    except Exception as error:
        if not isinstance(error, VL2Error):
            logger.exception("request_id=%s internal error in a stream", record.request_id)
            error = internal_error(record.request_id)
        record.fail(error)
        yield encode(error_body(error))
    yield DONE
