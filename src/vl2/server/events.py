"""An answer under way → server-sent events, in whatever dialect; it ends properly whatever happens."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Protocol

import msgspec

from vl2.core.errors import VL2Error
from vl2.core.types import Delta
from vl2.server.access import RequestRecord
from vl2.server.answer import Answer
from vl2.server.errors import ServerStopping, internal_error
from vl2.server.streaming import EventStream

logger = logging.getLogger(__name__)


STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer, with `stream: true` as events", "content": {"text/event-stream": {}}}
}
"""For the API's own description."""


class EventWriter(Protocol):
    def write(self, delta: Delta) -> Iterable[bytes]:
        """Events for a piece of the answer."""

    def fail(self, error: VL2Error) -> bytes:
        """What tells that the answer broke: the status line is out, and the client must not wait."""

    def end(self) -> bytes:
        """Behind the last event, also behind an error."""


def encode(body: dict[str, Any], event: str | None = None) -> bytes:
    data = b"data: " + msgspec.json.encode(body) + b"\n\n"
    return data if event is None else b"event: " + event.encode() + b"\n" + data


async def answer_events(
    answer: Answer,
    writer: EventWriter,
    record: RequestRecord,
    before_write: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[bytes]:
    """All that is there at a time goes out as one write; `before_write` ends first."""
    try:
        async for deltas in answer.batches():
            events = b"".join([event for delta in deltas for event in writer.write(delta)])
            if before_write is not None:
                await before_write()
            if events:
                yield events
    except Exception as error:
        if not isinstance(error, VL2Error):
            logger.exception("request_id=%s internal error in a stream", record.request_id)
            error = internal_error(record.request_id)
        record.fail(error)
        yield writer.fail(error)


def stopping_events(writer: EventWriter, record: RequestRecord) -> bytes:
    """The end of a stream that the server cuts because it stops."""
    error = ServerStopping()
    record.fail(error)
    return writer.fail(error) + writer.end()


def event_stream(
    answer: Answer,
    writer: EventWriter,
    record: RequestRecord,
    before_write: Callable[[], Awaitable[None]] | None = None,
) -> EventStream:
    events = answer_events(answer, writer, record, before_write)
    return EventStream(events, writer.end, answer.aclose, partial(stopping_events, writer, record))
