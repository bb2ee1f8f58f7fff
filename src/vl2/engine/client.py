"""The async face of an engine: admits requests, streams their events, survives the engine's death. No torch here."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

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
from vl2.core.mailbox import Mailbox
from vl2.core.stats import EngineStats, ModelInfo
from vl2.core.types import GenerateRequest, Prompt, QueueOptions, SamplingParams, TokenEvent
from vl2.engine.protocol import (
    Abort,
    Add,
    AskStats,
    Events,
    LoadProgress,
    Ping,
    Ready,
    Report,
    SetupFailed,
    StatsReport,
)
from vl2.engine.transport import Transport

log = logging.getLogger(__name__)

MAX_FAILED_STARTS = 3
STATS_TIMEOUT_S = 2.0
BEATS_PER_TIMEOUT = 4
TIMEOUT_S, BUSY_CPU_TIMEOUT_S = 60.0, 600.0
"""Silence after which an engine counts as hung, unless set: one step of a large model on a small CPU takes minutes."""


@dataclasses.dataclass(slots=True)
class _Stream:
    """An open request: its events, and the choices that are not finished."""

    open_choices: set[int]
    tile_bytes: int
    events: Mailbox[TokenEvent] = dataclasses.field(default_factory=Mailbox)


class EngineClient:
    """One engine, restarted when it dies or hangs. Lives on one event loop.

    `make_transport` gives a fresh transport for each life of the engine. `failure` is the reason why the engine was
    given up after it had been ready: it will not come back by itself.
    """

    def __init__(
        self,
        make_transport: Callable[[], Transport],
        *,
        max_open: int,
        max_tile_bytes: int = EngineConfig().max_queued_image_bytes,
        timeout_s: float | None = None,
        name: str = "the engine",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """`timeout_s`: see `EngineConfig.engine_timeout_s`; `name` is for the log."""
        self._make_transport, self._on_progress = make_transport, on_progress
        self._timeout_s, self._name = timeout_s, name
        self._max_open, self._max_tile_bytes = max_open, max_tile_bytes
        self.transport: Transport | None = None
        self.info: ModelInfo | None = None
        self.is_ready = False
        self.failure: str | None = None
        self.restarts_total = 0
        self._streams: dict[str, _Stream] = {}
        self._queries: dict[int, asyncio.Future[EngineStats]] = {}
        self._query_ids = itertools.count()
        self._started: asyncio.Future[None] | None = None
        self._failed_starts = 0
        self._was_ready = False  # in its present life
        self._is_hung = False
        self._unanswered_beats = 0
        self._given_up = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Returns when the model is loaded. Raises: SetupError."""
        self._started = asyncio.get_running_loop().create_future()
        self._failed_starts, self.failure = 0, None
        self._given_up.clear()
        await self._launch()
        await self._started
        self._keep(self._beat_for_ever())

    async def wait_failed(self) -> None:
        """Returns when the engine is given up."""
        await self._given_up.wait()

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
        if self.failure is not None:
            raise NotReady("the engine died and could not be started again; restart the server", retry_after_s=60)
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
        self._check_biases(params)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        params = dataclasses.replace(params, seed=seed, max_tokens=self._room_for_answer(prompt, params))
        return GenerateRequest(request_id, prompt, params, options)

    def _check_biases(self, params: SamplingParams) -> None:
        """On a GPU an index beyond the logits would end the engine."""
        assert self.info is not None
        for token_id in params.logit_bias:
            if not 0 <= token_id < self.info.vocab_size:
                raise InvalidRequest(
                    f"logit_bias has the token id {token_id}, but those of this model are from 0 to "
                    f"{self.info.vocab_size - 1}",
                    param="logit_bias",
                )

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
                await stream.events.wait()
                for event in stream.events.take():
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

    async def stats(self) -> EngineStats | None:
        """Counters of the engine's present life; zeros while it is not ready, None when it does not answer in time."""
        stats = EngineStats()
        if self.is_ready:
            query_id = next(self._query_ids)
            self._queries[query_id] = asyncio.get_running_loop().create_future()
            try:
                self._send(AskStats(query_id))
                stats = await asyncio.wait_for(self._queries[query_id], STATS_TIMEOUT_S)
            except asyncio.TimeoutError:
                log.warning("%s did not answer a question for its counters within %s s", self._name, STATS_TIMEOUT_S)
                return None
            finally:
                del self._queries[query_id]
        return dataclasses.replace(stats, restarts_total=self.restarts_total)

    def beat(self) -> None:
        """Ask for a sign of life; an engine that gave none for `BEATS_PER_TIMEOUT` beats is hung.

        The engine's loop answers between two steps, so a hung step is found, and a stopped process. Beats are counted,
        not seconds: when this process was stopped too, nobody is to blame.
        """
        if not self.is_ready:
            return
        if self._unanswered_beats >= BEATS_PER_TIMEOUT:
            self._on_hang()
            return
        self._unanswered_beats += 1
        self._send(Ping())

    @property
    def silence_limit_s(self) -> float:
        if self._timeout_s is not None:
            return self._timeout_s
        is_on_cpu = self.info is not None and self.info.device == "cpu"
        return BUSY_CPU_TIMEOUT_S if is_on_cpu and self._streams else TIMEOUT_S

    async def _beat_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.silence_limit_s / BEATS_PER_TIMEOUT)
            self.beat()

    def _on_hang(self) -> None:
        """Not ready from now on. If it can be ended, a new one is started; else it is used when it answers again."""
        reason = f"no answer for {self.silence_limit_s:g} s"
        log.error("%s hangs (%s); %d requests were open", self._name, reason, len(self._streams))
        self.is_ready, self._is_hung = False, True
        self._fail_streams(f"the engine hung while it worked on this request ({reason})")
        for request_id in self._streams:
            self._send(Abort(request_id))
        if self.transport is not None:
            self.transport.kill(reason)

    def _send(self, command: Add | Abort | AskStats | Ping) -> None:
        if self.transport is not None:
            self.transport.send(command)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _launch(self) -> None:
        self._was_ready = self._is_hung = False
        self.transport = self._make_transport()
        await self.transport.start(self._on_report, self._on_death)

    def _on_report(self, report: Report) -> None:
        self._unanswered_beats = 0
        if self._is_hung:
            log.warning("%s answers again", self._name)
            self.is_ready, self._is_hung = True, False
        match report:
            case Events(events):
                for event in events:
                    if (stream := self._streams.get(event.request_id)) is not None:  # else it was closed meanwhile
                        stream.events.put(event)
            case LoadProgress(done, total):
                if self._on_progress is not None:
                    self._on_progress(done, total)
            case Ready(info):
                self.info, self.is_ready, self._was_ready, self._failed_starts = info, True, True, 0
                assert self._started is not None
                if self._started.done():
                    log.info("%s is ready again", self._name)
                else:
                    self._started.set_result(None)
            case SetupFailed(message):
                self._on_failed_start(message, is_final=self._is_first_start)
            case StatsReport(query_id, stats):
                if query_id in self._queries and not self._queries[query_id].done():
                    self._queries[query_id].set_result(stats)

    @property
    def _is_first_start(self) -> bool:
        return self._started is not None and not self._started.done()

    def _on_death(self, reason: str) -> None:
        """Every open stream ends with an error now; a new engine is started behind it."""
        log.error("%s died (%s); %d requests were open", self._name, reason, len(self._streams))
        self.is_ready = self._is_hung = False
        self._fail_streams(f"the engine died while it worked on this request ({reason}); it is being restarted")
        for question in self._queries.values():
            if not question.done():
                question.set_result(EngineStats())
        if self._was_ready:
            self._keep(self._restart())
        else:
            self._on_failed_start(f"it died: {reason}")

    def _on_failed_start(self, reason: str, *, is_final: bool = False) -> None:
        """Another try, unless there were enough; a checkpoint that is broken at the first start stays so."""
        self._failed_starts += 1
        if not is_final and self._failed_starts < MAX_FAILED_STARTS:
            log.error("%s could not start: %s", self._name, reason)
            self._keep(self._restart())
        elif self._is_first_start:
            assert self._started is not None
            message = reason if is_final else f"the engine failed {MAX_FAILED_STARTS} times while starting: {reason}"
            self._started.set_exception(SetupError(message))
        else:
            log.critical("%s is given up: it failed %d times while starting: %s", self._name, MAX_FAILED_STARTS, reason)
            self.failure = reason
            self._given_up.set()

    async def _restart(self) -> None:
        self.restarts_total += 1
        if self.transport is not None:
            await self.transport.stop()
        try:
            await self._launch()
        except OSError as error:  # no process can be made
            self._on_failed_start(str(error))

    def _fail_streams(self, message: str) -> None:
        for request_id, stream in self._streams.items():
            stream.events.put(TokenEvent(request_id, error=message))
