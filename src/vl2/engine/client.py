"""The async face of an engine: admits requests, streams their events, survives the engine's death. No torch here."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import secrets
from collections.abc import AsyncGenerator, Callable

from vl2.core.config import EngineConfig
from vl2.core.errors import (
    CapacityError,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    NotReady,
    SetupError,
)
from vl2.core.stats import EngineStats, ModelInfo
from vl2.core.types import GenerateRequest, Prompt, QueueOptions, SamplingParams, TokenEvent
from vl2.engine.protocol import (
    Abort,
    Add,
    AskStats,
    Events,
    LoadProgress,
    Ready,
    Report,
    SetupFailed,
    StatsReport,
)
from vl2.engine.transport import Transport

log = logging.getLogger(__name__)

MAX_FAILED_STARTS = 3
STATS_TIMEOUT_S = 2.0


@dataclasses.dataclass(slots=True)
class _Stream:
    """An open request: its events, and the choices that are not finished."""

    open_choices: set[int]
    tile_bytes: int
    events: asyncio.Queue[TokenEvent] = dataclasses.field(default_factory=asyncio.Queue)


class EngineClient:
    """One engine, restarted when it dies. Lives on one event loop.

    `make_transport` gives a fresh transport for each life of the engine.
    """

    def __init__(
        self,
        make_transport: Callable[[], Transport],
        *,
        max_open: int,
        max_tile_bytes: int = EngineConfig().max_queued_image_bytes,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._make_transport, self._on_progress = make_transport, on_progress
        self._max_open, self._max_tile_bytes = max_open, max_tile_bytes
        self.transport: Transport | None = None
        self.info: ModelInfo | None = None
        self.is_ready = False
        self.restarts_total = 0
        self._streams: dict[str, _Stream] = {}
        self._queries: dict[int, asyncio.Future[EngineStats]] = {}
        self._query_ids = itertools.count()
        self._started: asyncio.Future[None] | None = None
        self._failed_starts = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Returns when the model is loaded. Raises: SetupError."""
        self._started = asyncio.get_running_loop().create_future()
        await self._launch()
        await self._started

    async def stop(self) -> None:
        self.is_ready = False
        for task in self._tasks:
            task.cancel()
        if self.transport is not None:
            await self.transport.stop()
            self.transport = None
        self._fail_streams("the server is shutting down")

    def admit(
        self, request_id: str, prompt: Prompt, params: SamplingParams, options: QueueOptions = QueueOptions()
    ) -> GenerateRequest:
        """Refuse what can never run, and what cannot be queued now; settle seed and max_tokens of the rest.

        Raises: ContextLengthExceeded, InvalidRequest, NotReady, CapacityError.
        """
        if not self.is_ready or self.info is None:
            raise NotReady("the engine is starting; try again in a moment", retry_after_s=5)
        if len(self._streams) >= self._max_open:
            raise CapacityError(f"{len(self._streams)} requests are running or queued, the most that are taken")
        queued_bytes = sum(stream.tile_bytes for stream in self._streams.values())
        if queued_bytes + prompt.tiles.nbytes > self._max_tile_bytes and self._streams:
            raise CapacityError(
                f"the pictures of queued requests take {queued_bytes} bytes of the {self._max_tile_bytes} that are kept"
            )
        if request_id in self._streams:
            raise InvalidRequest(f"a request with id {request_id!r} is already running", param="request_id")
        seed = secrets.randbits(63) if params.seed is None else params.seed
        params = dataclasses.replace(params, seed=seed, max_tokens=self._room_for_answer(prompt, params))
        return GenerateRequest(request_id, prompt, params, options)

    def _room_for_answer(self, prompt: Prompt, params: SamplingParams) -> int:
        assert self.info is not None
        length, context = len(prompt.token_ids), self.info.max_context_tokens
        of_which = f"{length} tokens ({prompt.num_image_tokens} of pictures)"
        if length >= context:
            raise ContextLengthExceeded(
                f"the prompt has {of_which}, but the context holds {context}, answer included; "
                f"send less text, or fewer or smaller pictures",
                param="messages",
            )
        if params.max_tokens is not None and length + params.max_tokens > context:
            raise ContextLengthExceeded(
                f"the prompt has {of_which} and max_tokens is {params.max_tokens}, together more than the context of "
                f"{context}; the most for this prompt is {context - length}",
                param="max_tokens",
            )
        return context - length if params.max_tokens is None else params.max_tokens

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """Events of all choices as they come. Closing the iterator aborts what is not finished.

        Raises: NotReady when the engine died since `admit`; EngineError when it fails or dies from here on.
        """
        if not self.is_ready:
            raise NotReady("the engine is being restarted; try again in a moment", retry_after_s=5)
        stream = self._streams[request.request_id] = _Stream(set(range(request.params.n)), request.prompt.tiles.nbytes)
        try:
            self._send(Add(request))
            while stream.open_choices:
                event = await stream.events.get()
                if event.error is not None:
                    stream.open_choices.clear()
                    raise DeadlineExceeded(event.error) if event.is_expired else EngineError(event.error)
                if event.choice_idx not in stream.open_choices:
                    continue  # was on its way when the choice was closed
                if event.finish_reason is not None:
                    stream.open_choices.discard(event.choice_idx)
                yield event
        finally:
            del self._streams[request.request_id]
            if stream.open_choices:
                self._send(Abort(request.request_id))

    def close_choice(self, request_id: str, choice_idx: int) -> None:
        """One choice has all the text it needs (a stop string); the others go on. It gets no further event."""
        self._streams[request_id].open_choices.discard(choice_idx)
        self._send(Abort(request_id, choice_idx))

    async def stats(self) -> EngineStats:
        """Counters of the engine's present life; zeros while it is not ready."""
        stats = EngineStats()
        if self.is_ready:
            query_id = next(self._query_ids)
            self._queries[query_id] = asyncio.get_running_loop().create_future()
            try:
                self._send(AskStats(query_id))
                stats = await asyncio.wait_for(self._queries[query_id], STATS_TIMEOUT_S)
            except asyncio.TimeoutError:
                log.warning("the engine did not answer a question for its counters within %s s", STATS_TIMEOUT_S)
            finally:
                del self._queries[query_id]
        return dataclasses.replace(stats, restarts_total=self.restarts_total)

    def _send(self, command: Add | Abort | AskStats) -> None:
        if self.transport is not None:
            self.transport.send(command)

    async def _launch(self) -> None:
        self.transport = self._make_transport()
        await self.transport.start(self._on_report, self._on_death)

    def _on_report(self, report: Report) -> None:
        match report:
            case Events(events):
                for event in events:
                    if event.request_id in self._streams:  # else it was closed meanwhile
                        self._streams[event.request_id].events.put_nowait(event)
            case LoadProgress(done, total):
                if self._on_progress is not None:
                    self._on_progress(done, total)
            case Ready(info):
                self.info, self.is_ready, self._failed_starts = info, True, 0
                self._settle_start(None)
            case SetupFailed(message):
                self._settle_start(SetupError(message))
            case StatsReport(query_id, stats):
                if query_id in self._queries and not self._queries[query_id].done():
                    self._queries[query_id].set_result(stats)

    def _settle_start(self, error: SetupError | None) -> None:
        if self._started is None or self._started.done():
            if error is not None:
                log.error("the engine cannot start again: %s", error)
            return
        if error is None:
            self._started.set_result(None)
        else:
            self._started.set_exception(error)

    def _on_death(self, reason: str) -> None:
        """Every open stream ends with an error now; a new engine is started behind it."""
        log.error("the engine died (%s); %d requests were open", reason, len(self._streams))
        was_ready, self.is_ready = self.is_ready, False
        self._fail_streams(f"the engine died while it worked on this request ({reason}); it is being restarted")
        for question in self._queries.values():
            if not question.done():
                question.set_result(EngineStats())
        self._failed_starts += not was_ready
        if self._failed_starts >= MAX_FAILED_STARTS:
            self._settle_start(SetupError(f"the engine died {MAX_FAILED_STARTS} times while starting ({reason})"))
            return
        task = asyncio.get_running_loop().create_task(self._restart())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _restart(self) -> None:
        self.restarts_total += 1
        if self.transport is not None:
            await self.transport.stop()
        await self._launch()

    def _fail_streams(self, message: str) -> None:
        for request_id, stream in self._streams.items():
            stream.events.put_nowait(TokenEvent(request_id, error=message))
