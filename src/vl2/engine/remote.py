"""The engines as a front-end process sees them: the face of `EngineGroup`, behind a socket to the hub."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import msgspec
import zmq

from vl2.core.errors import EngineError, InvalidRequest, NotReady, SetupError, VL2Error
from vl2.core.mailbox import Mailbox
from vl2.core.stats import EngineStats, ModelInfo, ReplicaStats, sum_stats
from vl2.core.types import Prompt, QueueOptions, SamplingParams, TokenEvent
from vl2.engine.channel import Channel
from vl2.engine.hub import hub_address
from vl2.engine.hub_protocol import (
    NO_ANSWER,
    Answered,
    Call,
    CloseChoice,
    Drop,
    Hello,
    Refused,
    State,
    Submit,
    ToHub,
    Welcoming,
    decode_to_frontend,
)
from vl2.engine.protocol import Buffer, Events, encode

log = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True)
class _Stream:
    open_choices: set[int]
    is_cut: bool = False  # the hub does not know that a choice has ended
    events: Mailbox[TokenEvent | VL2Error] = dataclasses.field(default_factory=Mailbox)


class RemoteGroup:
    """Lives on one event loop. The hub admits: what it refuses is raised by `generate`, before the first event."""

    def __init__(self, folder: Path, name: str) -> None:
        """`folder` of the hub's socket; `name` of this front-end, which no other has ever had."""
        self.is_ready = False
        self.failure: str | None = None
        self.info: ModelInfo | None = None
        self._channel = Channel(zmq.DEALER, name=name)
        self._channel.connect(hub_address(folder))
        self._streams: dict[str, _Stream] = {}
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self._call_ids = itertools.count(NO_ANSWER + 1)
        self._news = asyncio.Event()

    async def start(self) -> None:
        """Returns when the engines take requests. Raises: SetupError when they never will."""
        self._channel.listen(self._receive)
        self._send(Hello())
        while not self.is_ready:
            await self._news.wait()
            self._news.clear()
            if self.failure is not None:
                raise SetupError(self.failure)
        self._send(Welcoming())

    async def stop(self) -> None:
        self.is_ready = False
        self._channel.close()

    async def wait_failed(self) -> str:
        """Returns the reason when there is one."""
        while self.failure is None:
            await self._news.wait()
            self._news.clear()
        return self.failure

    def admit(
        self, request_id: str, prompt: Prompt, params: SamplingParams, options: QueueOptions = QueueOptions()
    ) -> Submit:
        """Raises: InvalidRequest, NotReady."""
        if not self.is_ready:
            raise NotReady("the engine is starting; try again in a moment", retry_after_s=5)
        if request_id in self._streams:
            raise InvalidRequest(f"a request with id {request_id!r} is already running", param="request_id")
        return Submit(request_id, prompt, params, options)

    async def generate(self, request: Submit) -> AsyncGenerator[TokenEvent, None]:
        """Events of all choices as they come. Closing the iterator aborts what is not finished.

        Raises: as `EngineGroup.admit` and `EngineGroup.generate`.
        """
        stream = self._streams[request.request_id] = _Stream(set(range(request.params.n)))
        try:
            self._send(request)
            while stream.open_choices:
                await stream.events.wait()
                for event in stream.events.take():
                    if isinstance(event, VL2Error):
                        stream.open_choices.clear()
                        stream.is_cut = False
                        raise event
                    if event.choice_idx not in stream.open_choices:
                        continue  # was on its way when the choice was closed
                    if event.finish_reason is not None:
                        stream.open_choices.discard(event.choice_idx)
                    yield event
        finally:
            del self._streams[request.request_id]
            if stream.open_choices or stream.is_cut:
                self._send(Drop(request.request_id))

    def close_choice(self, request_id: str, choice_idx: int) -> None:
        """One choice has all the text it needs (a stop string); the others go on. It gets no further event."""
        stream = self._streams[request_id]
        stream.open_choices.discard(choice_idx)
        stream.is_cut = True
        self._send(CloseChoice(request_id, choice_idx))

    async def replica_stats(self) -> list[ReplicaStats]:
        """Of each replica, in order; zeros while it is not ready, None when it does not answer."""
        return msgspec.msgpack.decode(await self.call("replica_stats"), type=list[ReplicaStats])

    async def stats(self) -> EngineStats:
        """Sums over the replicas."""
        return sum_stats([replica.stats for replica in await self.replica_stats() if replica.stats is not None])

    async def call(self, service: str, payload: bytes = b"") -> bytes:
        """Ask the hub. Raises: as the service does."""
        call_id = next(self._call_ids)
        answer = self._calls[call_id] = asyncio.get_running_loop().create_future()
        try:
            self._send(Call(call_id, service, payload))
            return await answer
        finally:
            del self._calls[call_id]

    def tell(self, service: str, payload: bytes) -> None:
        """Without waiting for an answer."""
        self._send(Call(NO_ANSWER, service, payload))

    def _receive(self, frames: Sequence[Buffer]) -> None:
        try:
            self._on_message(frames)
        except Exception as error:  # nothing that is waited for would come any more
            log.exception("what the hub sends cannot be read")
            self._channel.close()
            self.is_ready, self.failure = False, f"what the hub sends cannot be read: {error}"
            for stream in self._streams.values():
                stream.events.put(EngineError(self.failure))
            for call_id in self._calls:
                self._settle(call_id, b"", EngineError(self.failure))
            self._news.set()

    def _on_message(self, frames: Sequence[Buffer]) -> None:
        match decode_to_frontend(frames):
            case State(is_ready, failure, info):
                self.is_ready, self.failure, self.info = is_ready, failure, info or self.info
                self._news.set()
            case Events(events):
                for event in events:
                    if (stream := self._streams.get(event.request_id)) is not None:  # else it was closed meanwhile
                        stream.events.put(event)
            case Refused(request_id, failure):
                if (stream := self._streams.get(request_id)) is not None:
                    stream.events.put(failure.error())
            case Answered(call_id, payload, failure):
                self._settle(call_id, payload, failure.error() if failure is not None else None)

    def _settle(self, call_id: int, payload: bytes, error: VL2Error | None) -> None:
        answer = self._calls.get(call_id)
        if answer is None or answer.done():
            return
        if error is None:
            answer.set_result(payload)
        else:
            answer.set_exception(error)

    def _send(self, message: ToHub) -> None:
        self._channel.send(encode(message), copy=False)
