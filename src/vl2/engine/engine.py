"""The loop is four calls: schedule, launch, advance, update.

On a GPU a step is launched before the tokens of the one before it are back: the device never waits for the host.
"""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

from vl2.core.config import EngineConfig
from vl2.core.stats import EngineStats, ModelInfo, resident_bytes
from vl2.core.types import GenerateRequest, TokenEvent
from vl2.engine.grammar import Grammars, broken_requests
from vl2.engine.image_cache import TileCache
from vl2.engine.meter import StepMeter
from vl2.engine.pacing import Pacer, StepLoad, unnoticed_step_s
from vl2.engine.pages import PagePool
from vl2.engine.pending import PendingStep
from vl2.engine.prefix import PageKeys
from vl2.engine.scheduler import Scheduler, StepBatch
from vl2.engine.sequence import Sequence
from vl2.engine.step_runner import Progress, open_runner

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InFlight:
    """A step that was sent to the device and whose tokens are not back yet."""

    batch: StepBatch
    pending: PendingStep
    load: StepLoad
    started_s: float


class Engine:
    """Continuous batching over one model on one device. Not thread-safe: one thread owns it."""

    def __init__(self, folder: Path, config: EngineConfig, on_progress: Progress | None = None) -> None:
        """Raises: SetupError when the checkpoint or the machine does not allow it."""
        self.runner = open_runner(folder, config, on_progress)
        info = self.runner.info
        self.scheduler = Scheduler(
            PagePool(info.num_pages, info.page_size_tokens),
            TileCache(self.runner.num_tile_slots),
            Pacer(
                config.max_step_tokens,
                config.max_step_tiles,
                unnoticed_step_s=unnoticed_step_s(self.runner.overlaps, mixes=not self.runner.replays),
                step_sizes=self.runner.step_sizes,
                mixes=not self.runner.replays,
            ),
            max_sequences=config.max_sequences,
            eos_token_id=self.runner.model_config.language.eos_token_id,
            replays=self.runner.replays,
        )
        language = self.runner.model_config.language
        self.grammars = Grammars(folder, language.vocab_size, language.eos_token_id)
        self._has_prefix_cache = config.prefix_cache
        self._generated_tokens = self._tiles_encoded = 0
        self._collected_s = 0.0
        self._meter = StepMeter()
        self._in_flight: InFlight | None = None

    @property
    def info(self) -> ModelInfo:
        return self.runner.info

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self._in_flight is not None

    def add(self, request: GenerateRequest) -> None:
        """Queue a request; `client.admit` has checked that it can ever fit."""
        page_keys = None
        if self._has_prefix_cache:
            page_keys = PageKeys(
                request.prompt, request.options.cache_salt, self.scheduler.pages.page_size, self.runner.fingerprint
            )
        for choice_idx in range(request.params.n):
            sequence = Sequence(
                request,
                choice_idx,
                self.runner.max_context_tokens,
                arrival_s=time.monotonic(),
                page_keys=copy.copy(page_keys),
            )
            self.grammars.constrain(sequence)
            self.scheduler.add(sequence)

    def abort(self, request_id: str, choice_idx: int | None = None) -> None:
        """Stop working on a request, or on one choice of it; no event follows."""
        self.scheduler.abort(request_id, choice_idx)

    def step(self) -> list[TokenEvent]:
        """Launch one step of everything that runs, and take the result of the one before, or of this one."""
        events = self._expire()
        if self._in_flight is not None and self.scheduler.needs_history:
            events += self._collect()
        before, self._in_flight = self._in_flight, None
        batch = self.scheduler.schedule()
        launched = None
        if batch:
            try:
                launched = self._launch(batch)
            except Exception as error:  # whatever it was, nobody may wait for ever
                events += self._failed(batch, error)
        if before is not None:
            self._in_flight = before
            events += self._collect()
        self._in_flight = launched
        if launched is not None and not self.runner.overlaps:
            events += self._collect()
        return events

    def _expire(self) -> list[TokenEvent]:
        message = "its deadline passed while it waited in the queue"
        late = self.scheduler.expire(time.monotonic())
        return [TokenEvent(request_id, error=message, is_expired=True) for request_id in late]

    def _launch(self, batch: StepBatch) -> InFlight:
        started_s, load = time.monotonic(), batch.load
        pending = self.runner.launch(batch)
        for chunk in batch.chunks:
            chunk.sequence.clock.begin(started_s)
        for job in batch.tile_jobs:
            job.sequence.clock.begin(started_s)
        batch = batch.without_last_token(pending.late)
        self.scheduler.advance(batch)
        return InFlight(batch, pending, load, started_s)

    def _collect(self) -> list[TokenEvent]:
        """The events of the step in flight. A failure ends the requests it concerns, each with an error event."""
        flight, self._in_flight = self._in_flight, None
        assert flight is not None
        try:
            output = flight.pending.result()
        except Exception as error:
            return self._failed(flight.batch, error)
        self.runner.vision_clock.settle()
        broken = broken_requests(flight.batch)
        events = _timed(self.scheduler.update(flight.batch, output), flight.batch)
        for request_id, message in broken.items():
            self.scheduler.abort(request_id)
            events = [event for event in events if event.request_id != request_id]
            events.append(TokenEvent(request_id, error=message))
        now_s = time.monotonic()
        seconds = flight.pending.seconds
        if seconds is None:
            seconds = now_s - max(flight.started_s, self._collected_s)
        self._collected_s = now_s
        self.scheduler.pacer.learn(flight.load, seconds)
        self._meter.observe(flight.load, len(flight.batch.chunks), seconds)
        self._generated_tokens += len(events)
        self._tiles_encoded += flight.load.num_tiles
        return events

    def _failed(self, batch: StepBatch, error: Exception) -> list[TokenEvent]:
        """Raises: the error, where no step can be computed any more: another engine must take this one's place."""
        log.error("a step failed", exc_info=error)
        if not self.runner.is_usable():
            raise error
        message = f"the engine failed at this request: {type(error).__name__}: {error}"
        return [TokenEvent(request_id, error=message) for request_id in self.scheduler.fail(batch)]

    def stats(self) -> EngineStats:
        scheduler, runner = self.scheduler, self.runner
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_pages_used=scheduler.pages.num_pages - scheduler.pages.num_free,
            num_pages_cached=scheduler.pages.num_idle,
            num_pages=scheduler.pages.num_pages,
            image_cache_used_bytes=scheduler.tiles.num_used * runner.tile_bytes,
            image_cache_bytes=scheduler.tiles.num_slots * runner.tile_bytes,
            prompt_tokens_total=scheduler.counts.prompt_tokens,
            cached_tokens_total=scheduler.counts.cached_tokens,
            generated_tokens_total=self._generated_tokens,
            tiles_encoded_total=self._tiles_encoded,
            tile_hits_total=scheduler.tiles.hits_total,
            vision_seconds_total=runner.vision_clock.seconds,
            preemptions_total=scheduler.counts.preemptions,
            resident_bytes=resident_bytes(),
            step_sequences=self._meter.sequences.snapshot(),
            step_seconds={kind: tally.snapshot() for kind, tally in self._meter.seconds.items()},
            memory=runner.memory(),
        )


def _timed(events: list[TokenEvent], batch: StepBatch) -> list[TokenEvent]:
    """Those that end an answer tell where its time went."""
    now_s = time.monotonic()
    clocks = {(chunk.sequence.request_id, chunk.sequence.choice_idx): chunk.sequence.clock for chunk in batch.sampled}
    timed = []
    for event in events:
        clock = clocks[event.request_id, event.choice_idx]
        clock.token(now_s)
        timed.append(event if event.finish_reason is None else replace(event, timing=clock.timing(now_s)))
    return timed
