"""How long the vision tower works, and for whom."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vl2.engine.scheduler import TileJob


class VisionClock:
    """On a GPU its own events are read: launching returns at once, so the host's clock would show nothing."""

    def __init__(self, make_event: Callable[[], Any] | None = None) -> None:
        """`make_event`: a `torch.cuda.Event` that keeps its time; None where launching waits for the result."""
        self.seconds = 0.0  # of all laps that are settled
        self._make_event = make_event
        self._open: deque[tuple[Any, Any, Sequence[TileJob]]] = deque()

    @contextmanager
    def lap(self, jobs: Sequence[TileJob]) -> Iterator[None]:
        """Around the encoding of `jobs`; each sequence gets its tiles' share of the time. Nothing of what fails."""
        if self._make_event is None:
            started_s = time.monotonic()
            yield
            self._book(time.monotonic() - started_s, jobs)
            return
        start, end = self._make_event(), self._make_event()
        start.record()
        yield
        end.record()
        self._open.append((start, end, jobs))

    def settle(self) -> None:
        """Count the laps that the device has ended by now; waits for nothing."""
        while self._open and self._open[0][1].query():
            start, end, jobs = self._open.popleft()
            self._book(start.elapsed_time(end) / 1000, jobs)

    def _book(self, seconds: float, jobs: Sequence[TileJob]) -> None:
        self.seconds += seconds
        for job in jobs:
            job.sequence.clock.vision_s += seconds / len(jobs)
