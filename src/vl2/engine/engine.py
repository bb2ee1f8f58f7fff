"""The loop is three calls: schedule, run, update."""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path

from vl2.core.config import EngineConfig
from vl2.core.stats import EngineStats, ModelInfo
from vl2.core.types import GenerateRequest, TokenEvent
from vl2.engine.grammar import Grammars, broken_requests
from vl2.engine.image_cache import TileCache
from vl2.engine.pacing import Pacer
from vl2.engine.pages import PagePool
from vl2.engine.prefix import PageKeys
from vl2.engine.runner import Progress, Runner
from vl2.engine.scheduler import Scheduler
from vl2.engine.sequence import Sequence

log = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one model on one device. Not thread-safe: one thread owns it."""

    def __init__(self, folder: Path, config: EngineConfig, on_progress: Progress | None = None) -> None:
        """Raises: SetupError when the checkpoint or the machine does not allow it."""
        self.runner = Runner(folder, config, on_progress)
        self.scheduler = Scheduler(
            PagePool(self.runner.pool.num_pages, self.runner.pool.page_size),
            TileCache(self.runner.num_tile_slots),
            Pacer(config.max_step_tokens, config.max_step_tiles),
            max_sequences=config.max_sequences,
            eos_token_id=self.runner.model_config.language.eos_token_id,
        )
        language = self.runner.model_config.language
        self.grammars = Grammars(folder, language.vocab_size, language.eos_token_id)
        self._has_prefix_cache = config.prefix_cache
        self._steps = self._generated_tokens = self._tiles_encoded = 0
        self._step_seconds = 0.0

    @property
    def info(self) -> ModelInfo:
        return self.runner.info

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def add(self, request: GenerateRequest) -> None:
        """Queue a request; `client.admit` has checked that it can ever fit."""
        page_keys = None
        if self._has_prefix_cache:
            page_keys = PageKeys(
                request.prompt, request.options.cache_salt, self.runner.pool.page_size, self.runner.fingerprint
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
        """One step of everything that runs. A failure ends the requests it concerns, each with an error event."""
        started_s = time.monotonic()
        late = [
            TokenEvent(request_id, error="its deadline passed while it waited in the queue", is_expired=True)
            for request_id in self.scheduler.expire(started_s)
        ]
        batch = self.scheduler.schedule()
        load = batch.load
        try:
            output = self.runner.run(batch)
        except Exception as error:  # whatever it was, nobody may wait for ever
            log.exception("a step failed")
            message = f"the engine failed at this request: {type(error).__name__}: {error}"
            return late + [TokenEvent(request_id, error=message) for request_id in self.scheduler.fail(batch)]
        batch = batch.without_last_token(output.late)
        broken = broken_requests(batch)
        events = self.scheduler.update(batch, output)
        for request_id, message in broken.items():
            self.scheduler.abort(request_id)
            events = [event for event in events if event.request_id != request_id]
            events.append(TokenEvent(request_id, error=message))
        seconds = time.monotonic() - started_s
        self.scheduler.pacer.learn(load, seconds)
        self._steps += 1
        self._step_seconds += seconds
        self._generated_tokens += len(events)
        self._tiles_encoded += load.num_tiles
        return late + events

    def stats(self) -> EngineStats:
        scheduler = self.scheduler
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_pages_used=scheduler.pages.num_pages - scheduler.pages.num_free,
            num_pages=scheduler.pages.num_pages,
            steps_total=self._steps,
            step_seconds_total=self._step_seconds,
            prompt_tokens_total=scheduler.counts.prompt_tokens,
            cached_tokens_total=scheduler.counts.cached_tokens,
            generated_tokens_total=self._generated_tokens,
            tiles_encoded_total=self._tiles_encoded,
            tile_hits_total=scheduler.tiles.hits_total,
            vision_seconds_total=self.runner.vision_seconds,
            preemptions_total=scheduler.counts.preemptions,
        )
