"""The middle of several front-end processes: they share its engines, and what it keeps for them.

A front-end does all that takes time (HTTP, pictures, text ⇄ tokens) and sends prompts; the hub admits them, and gives
the engines' events back, all that are there at a time as one message.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import msgspec
import zmq

from vl2.core.errors import VL2Error
from vl2.core.interface import Service
from vl2.core.types import TokenEvent
from vl2.engine.channel import Channel
from vl2.engine.group import EngineGroup
from vl2.engine.hub_protocol import (
    NO_ANSWER,
    Answered,
    Call,
    CloseChoice,
    Drop,
    Failure,
    Hello,
    Refused,
    State,
    Submit,
    ToFrontend,
    Welcoming,
    decode_to_hub,
)
from vl2.engine.protocol import Buffer, Events, encode

log = logging.getLogger(__name__)

STATE_POLL_S = 0.05
INTERNAL = Failure("EngineError", "internal error; the log has it")


def hub_address(folder: Path) -> str:
    return f"ipc://{folder}/hub"


class Hub:
    """Lives on the event loop of `group`. Only who may enter `folder` can reach it."""

    def __init__(self, group: EngineGroup, folder: Path, services: Mapping[str, Service]) -> None:
        self._group = group
        self._services: dict[str, Service] = {"replica_stats": self._replica_stats, **services}
        self._channel = Channel(zmq.ROUTER)
        self._channel.bind(hub_address(folder))
        self._known: set[str] = set()
        self._welcoming: set[str] = set()
        self._open: dict[tuple[str, str], asyncio.Task[None]] = {}  # (front-end, request id)
        self._outboxes: dict[str, list[TokenEvent]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._channel.listen(self._receive)
        self._keep(self._tell_state())

    async def stop(self) -> None:
        self._channel.close()
        tasks = [*self._tasks, *self._open.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def forget(self, frontend: str) -> None:
        """It is gone: what it asked for is let go of."""
        self._known.discard(frontend)
        self._welcoming.discard(frontend)
        self._outboxes.pop(frontend, None)
        for (owner, _), task in self._open.items():
            if owner == frontend:
                task.cancel()

    @property
    def num_welcoming(self) -> int:
        """Front-ends that take questions: they know that the engines are ready, which they are told a moment later."""
        return len(self._welcoming)

    def _receive(self, frames: Sequence[zmq.Frame]) -> None:
        name, *rest = frames
        try:
            self._on_message(name.bytes.decode(), rest)
        except Exception:  # of one front-end; the others are to be served
            log.exception("a message from front-end %r could not be read", name.bytes)

    def _on_message(self, frontend: str, frames: Sequence[Buffer]) -> None:
        match decode_to_hub(frames):
            case Hello():
                self._known.add(frontend)
                self._send(frontend, self._state())
            case Welcoming():
                self._welcoming.add(frontend)
            case Submit() as request:
                self._submit(frontend, request)
            case Drop(request_id):
                if (task := self._open.get((frontend, request_id))) is not None:
                    task.cancel()
            case CloseChoice(request_id, choice_idx):
                if (frontend, request_id) in self._open:
                    with suppress(KeyError):  # it has just ended by itself
                        self._group.close_choice(request_id, choice_idx)
            case Call() as call:
                self._keep(self._answer_call(frontend, call))

    def _submit(self, frontend: str, request: Submit) -> None:
        key = (frontend, request.request_id)
        task = self._open[key] = asyncio.ensure_future(self._answer_request(frontend, request))

        def forget(_: asyncio.Task[None]) -> None:
            if self._open.get(key) is task:  # else the name has been taken again
                del self._open[key]

        task.add_done_callback(forget)

    async def _answer_request(self, frontend: str, request: Submit) -> None:
        try:
            # Nothing may come between these two, or more would be admitted than there is room for.
            admitted = self._group.admit(request.request_id, request.prompt, request.params, request.options)
            async with aclosing(self._group.generate(admitted)) as events:
                async for event in events:
                    self._post(frontend, event)
        except VL2Error as error:
            self._refuse(frontend, request, Failure.of(error))
        except Exception:
            log.exception("request %s failed", request.request_id)
            self._refuse(frontend, request, INTERNAL)

    def _refuse(self, frontend: str, request: Submit, failure: Failure) -> None:
        self._flush()
        self._send(frontend, Refused(request.request_id, failure))

    def _post(self, frontend: str, event: TokenEvent) -> None:
        if not self._outboxes:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outboxes.setdefault(frontend, []).append(event)

    def _flush(self) -> None:
        outboxes, self._outboxes = self._outboxes, {}
        for frontend, events in outboxes.items():
            self._send(frontend, Events(events))

    async def _answer_call(self, frontend: str, call: Call) -> None:
        try:
            answered = Answered(call.call_id, await self._services[call.service](frontend, call.payload))
        except VL2Error as error:
            answered = Answered(call.call_id, failure=Failure.of(error))
        except Exception:
            log.exception("the service %s failed", call.service)
            answered = Answered(call.call_id, failure=INTERNAL)
        if call.call_id != NO_ANSWER:
            self._send(frontend, answered)

    async def _replica_stats(self, frontend: str, payload: bytes) -> bytes:
        return msgspec.msgpack.encode(await self._group.replica_stats())

    def _state(self) -> State:
        return State(self._group.is_ready, self._group.failure, self._group.info)

    async def _tell_state(self) -> None:
        told = self._state()
        while True:
            await asyncio.sleep(STATE_POLL_S)
            state = self._state()
            if state != told:
                told = state
                for frontend in self._known:
                    self._send(frontend, state)

    def _send(self, frontend: str, message: ToFrontend) -> None:
        self._channel.send([frontend.encode(), *encode(message)])  # one to a front-end that is gone is dropped

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
