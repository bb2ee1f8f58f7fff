"""The loop is three calls: schedule, run, update."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from vl2.core.config import EngineConfig
from vl2.core.stats import EngineStats, ModelInfo
from vl2.core.types import GenerateRequest, TokenEvent
from vl2.engine.image_cache import TileCache
from vl2.engine.pages import PageAllocator
from vl2.engine.runner import Progress, Runner
from vl2.engine.scheduler import Scheduler, StepBatch
from vl2.engine.sequence import Sequence

log = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one model on one device. Not thread-safe: one thread owns it."""

    def __init__(self, folder: Path, config: EngineConfig, on_progress: Progress | None = None) -> None:
        """Raises: SetupError when the checkpoint or the machine does not allow it."""
        self.runner = Runner(folder, config, on_progress)
        self.scheduler = Scheduler(
            PageAllocator(self.runner.pool.num_pages, self.runner.pool.page_size),
            TileCache(self.runner.num_tile_slots),
            max_sequences=config.max_sequences,
            max_step_tokens=config.max_step_tokens,
            max_step_tiles=config.max_step_tiles,
            eos_token_id=self.runner.model_config.language.eos_token_id,
        )
        self._totals = {"steps": 0, "prompt_tokens": 0, "generated_tokens": 0, "tiles_encoded": 0}
        self._step_seconds = 0.0

    @property
    def info(self) -> ModelInfo:
        return self.runner.info

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def add(self, request: GenerateRequest) -> None:
        """Queue a request; `client.admit` has checked that it can ever fit."""
        for choice_idx in range(request.params.n):
            self.scheduler.add(Sequence(request, choice_idx, self.runner.max_context_tokens))

    def abort(self, request_id: str, choice_idx: int | None = None) -> None:
        """Stop working on a request, or on one choice of it; no event follows."""
        self.scheduler.abort(request_id, choice_idx)

    def step(self) -> list[TokenEvent]:
        """One step of everything that runs. A failure ends the requests it concerns, each with an error event."""
        started = time.monotonic()
        batch = self.scheduler.schedule()
        try:
            output = self.runner.run(batch)
        except Exception as error:  # whatever it was, nobody may wait for ever
            log.exception("a step failed")
            message = f"the engine failed at this request: {type(error).__name__}: {error}"
            return [TokenEvent(request_id, error=message) for request_id in self.scheduler.fail(batch)]
        events = self.scheduler.update(batch, output)
        self._count(batch, len(events), time.monotonic() - started)
        return events

    def _count(self, batch: StepBatch, num_generated: int, seconds: float) -> None:
        self._totals["steps"] += 1
        self._totals["generated_tokens"] += num_generated
        self._totals["tiles_encoded"] += len(batch.tile_jobs)
        self._totals["prompt_tokens"] += sum(
            max(0, min(chunk.end, chunk.sequence.num_prompt_tokens) - chunk.start) for chunk in batch.chunks
        )
        self._step_seconds += seconds

    def stats(self) -> EngineStats:
        pages = self.scheduler.pages
        return EngineStats(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            num_pages_used=pages.num_pages - pages.num_free,
            num_pages=pages.num_pages,
            steps_total=self._totals["steps"],
            step_seconds_total=self._step_seconds,
            prompt_tokens_total=self._totals["prompt_tokens"],
            generated_tokens_total=self._totals["generated_tokens"],
            tiles_encoded_total=self._totals["tiles_encoded"],
            tile_hits_total=self.scheduler.tiles.hits_total,
            preemptions_total=self.scheduler.preemptions_total,
        )
