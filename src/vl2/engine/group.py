"""Several engines behind the face of one: a request goes to one replica, a dead replica is left out until it is back.

With one replica this is that engine's client and nothing more, so that there is one path for every size.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress

from vl2.core.config import EngineConfig
from vl2.core.errors import CapacityError, EngineError, InvalidRequest, NotReady
from vl2.core.stats import EngineStats, ModelInfo, ReplicaStats, sum_stats
from vl2.core.types import GenerateRequest, Prompt, QueueOptions, SamplingParams, TokenEvent
from vl2.engine.client import EngineClient
from vl2.engine.gpu_meter import GPUMeter
from vl2.engine.routing import Footprint, Router, Work, footprint
from vl2.engine.transport import Transport

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Admitted:
    """A request that its replica has agreed to take."""

    request: GenerateRequest
    replica_idx: int
    footprint: Footprint

    @property
    def request_id(self) -> str:
        return self.request.request_id


class EngineGroup:
    """`config.replicas` engines of the same model. Lives on one event loop.

    `make_transport(config)` gives a fresh transport for each life of a replica; its `config.replica_idx` says which.
    """

    def __init__(
        self,
        make_transport: Callable[[EngineConfig], Transport],
        config: EngineConfig,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """`on_progress(bytes done, bytes in all)` counts all replicas together."""
        self._make_transport, self._on_progress = make_transport, on_progress
        self._router = Router(config.replicas, max_tiles=config.image_cache_tiles)
        self._num_lives = [0] * config.replicas
        self._loaded_bytes = [0] * config.replicas
        self._replica_of: dict[str, int] = {}  # open requests
        self._is_started = False
        self._gpus = GPUMeter()
        self.clients = [self._client(dataclasses.replace(config, replica_idx=idx)) for idx in range(config.replicas)]

    def _client(self, config: EngineConfig) -> EngineClient:
        idx = config.replica_idx

        def make_transport() -> Transport:
            if self._num_lives[idx]:
                log.warning("replica %d is started again", idx)
            self._num_lives[idx] += 1
            self._router.forget(idx)
            return self._make_transport(config)

        def report_progress(done: int, total: int) -> None:
            self._loaded_bytes[idx] = done
            if self._on_progress is not None:
                self._on_progress(sum(self._loaded_bytes), total * len(self._loaded_bytes))

        return EngineClient(
            make_transport,
            max_open=config.max_queue + config.max_sequences,
            max_tile_bytes=config.max_queued_image_bytes,
            timeout_s=config.engine_timeout_s,
            name=f"replica {idx}" if config.replicas > 1 else "the engine",
            on_progress=report_progress,
        )

    @property
    def is_ready(self) -> bool:
        """Once all replicas have started: whether any of them takes requests."""
        return self._is_started and any(client.is_ready for client in self.clients)

    @property
    def failure(self) -> str | None:
        """Why nothing will be answered any more: every replica was given up after it had been ready."""
        failures = [client.failure for client in self.clients]
        return failures[0] if all(failures) else None

    async def wait_failed(self) -> str:
        """Returns the reason when there is one."""
        await asyncio.gather(*(client.wait_failed() for client in self.clients))
        return self.failure or "it was given up"

    @property
    def info(self) -> ModelInfo | None:
        return self.clients[0].info

    async def start(self) -> None:
        """Returns when every replica has loaded the model. Raises: SetupError when one of them cannot."""
        await asyncio.gather(*(client.start() for client in self.clients))
        self._is_started = True

    async def stop(self) -> None:
        """Open streams end with EngineError."""
        self._is_started = False
        await asyncio.gather(*(client.stop() for client in self.clients))

    def admit(
        self, request_id: str, prompt: Prompt, params: SamplingParams, options: QueueOptions = QueueOptions()
    ) -> Admitted:
        """Choose the replica (see `routing`); one that has no room is passed over.

        Raises: ContextLengthExceeded, InvalidRequest, NotReady, CapacityError.
        """
        if request_id in self._replica_of:
            raise InvalidRequest(f"a request with id {request_id!r} is already running", param="request_id")
        is_alone = len(self.clients) == 1  # there is nothing to choose, and no need to hash the whole prompt
        wanted = Footprint(len(prompt.token_ids), (), ()) if is_alone else footprint(prompt, options.cache_salt)

        def ask(idx: int) -> Admitted:
            return Admitted(self.clients[idx].admit(request_id, prompt, params, options), idx, wanted)

        ready = [idx for idx, client in enumerate(self.clients) if client.is_ready]
        if not ready:  # one that is coming back says so itself
            ready = [idx for idx, client in enumerate(self.clients) if client.failure is None][:1] or [0]
        *others, last = self._router.ranking(wanted, ready)
        for idx in others:
            with suppress(CapacityError):
                return ask(idx)
        return ask(last)

    async def generate(self, admitted: Admitted) -> AsyncGenerator[TokenEvent, None]:
        """Events of all choices as they come. Closing the iterator aborts what is not finished.

        When the replica dies before the first event, the request moves to another one, once: its caller sees nothing of
        it, and a request that kills its engine cannot go on to kill them all.

        Raises: EngineError when the replica fails at the request, or dies; NotReady when it died since `admit`.
        """
        may_move = True
        while True:
            num_lives = self._num_lives[admitted.replica_idx]
            try:
                with self._working(admitted) as work:
                    async with aclosing(self.clients[admitted.replica_idx].generate(admitted.request)) as events:
                        async for event in events:
                            may_move, work.prompt_tokens = False, 0
                            yield event
                return
            except (EngineError, NotReady):
                if not may_move or not self._has_died_since(admitted.replica_idx, num_lives):
                    raise
                moved = self._move(admitted)
                if moved is None:
                    raise
                admitted, may_move = moved, False

    @contextmanager
    def _working(self, admitted: Admitted) -> Iterator[Work]:
        """For as long as a replica has the request."""
        idx, request = admitted.replica_idx, admitted.request
        work = self._router.open(idx, admitted.footprint, request.params.n)
        self._replica_of[request.request_id] = idx
        try:
            yield work
        finally:
            del self._replica_of[request.request_id]
            self._router.close(work)

    def _has_died_since(self, idx: int, num_lives: int) -> bool:
        return not self.clients[idx].is_ready or self._num_lives[idx] != num_lives

    def _move(self, admitted: Admitted) -> Admitted | None:
        """The same request, seed included, at another replica; None when there is none that takes it."""
        if not self.is_ready:
            return None
        request = admitted.request
        try:
            moved = self.admit(request.request_id, request.prompt, request.params, request.options)
        except CapacityError:
            return None
        log.warning(
            "request %s moves from replica %d, which died, to %d",
            request.request_id,
            admitted.replica_idx,
            moved.replica_idx,
        )
        return moved

    def close_choice(self, request_id: str, choice_idx: int) -> None:
        """One choice has all the text it needs (a stop string); the others go on. It gets no further event."""
        self.clients[self._replica_of[request_id]].close_choice(request_id, choice_idx)

    async def replica_stats(self) -> list[ReplicaStats]:
        """Of each replica, in order; zeros while it is not ready, None when it does not answer."""
        uuids = [client.info.gpu_uuid if client.info else None for client in self.clients]
        gpus = asyncio.ensure_future(asyncio.to_thread(self._gpus.read_all, uuids))
        stats = await asyncio.gather(*(client.stats() for client in self.clients))
        return [
            ReplicaStats(client.is_ready, of_one, gpu)
            for client, of_one, gpu in zip(self.clients, stats, await gpus, strict=True)
        ]

    async def stats(self) -> EngineStats:
        """Sums over the replicas."""
        return sum_stats([replica.stats for replica in await self.replica_stats() if replica.stats is not None])
