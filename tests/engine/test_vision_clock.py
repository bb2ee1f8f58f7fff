"""The vision tower's time, on the host's clock and on a device's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from vl2.engine.clock import SequenceClock
from vl2.engine.scheduler import TileJob
from vl2.engine.vision_clock import VisionClock


class DeviceEvent:
    """A `torch.cuda.Event` of a device whose clock the test moves, and which has come as far as `done_ms`."""

    now_ms = done_ms = 0.0

    def record(self) -> None:
        self.at_ms = DeviceEvent.now_ms

    def query(self) -> bool:
        return self.at_ms <= DeviceEvent.done_ms

    def elapsed_time(self, end: DeviceEvent) -> float:
        return end.at_ms - self.at_ms


def jobs_of(*counts: int) -> tuple[list[SequenceClock], list[TileJob]]:
    """Clocks of sequences, and so many tiles of each."""
    sequences = [SimpleNamespace(clock=SequenceClock(0.0)) for _ in counts]
    jobs = [TileJob(s, idx, idx) for s, count in zip(sequences, counts, strict=True) for idx in range(count)]
    return [sequence.clock for sequence in sequences], jobs


def test_a_gpu_s_laps_count_when_the_device_has_ended_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks, jobs = jobs_of(3, 1)
    vision = VisionClock(DeviceEvent)
    monkeypatch.setattr(DeviceEvent, "now_ms", 10.0)
    with vision.lap(jobs):
        DeviceEvent.now_ms = 50.0
    vision.settle()
    assert vision.seconds == 0, "it is still at work"
    DeviceEvent.done_ms = 50.0
    vision.settle()
    vision.settle()
    assert vision.seconds == pytest.approx(0.04)
    assert [clock.vision_s for clock in clocks] == pytest.approx([0.03, 0.01])
    DeviceEvent.done_ms = 0.0


def test_a_lap_that_fails_is_nobody_s(monkeypatch: pytest.MonkeyPatch) -> None:
    for make_event in (DeviceEvent, None):
        clocks, jobs = jobs_of(1)
        vision = VisionClock(make_event)
        with pytest.raises(RuntimeError), vision.lap(jobs):
            raise RuntimeError("out of memory")
        vision.settle()
        assert vision.seconds == 0 and clocks[0].vision_s == 0


@pytest.mark.gpu
def test_a_real_gpu_s_time_is_about_what_the_work_takes() -> None:
    clocks, jobs = jobs_of(1)
    vision = VisionClock(lambda: torch.cuda.Event(enable_timing=True))
    matrix = torch.ones(8192, 8192, device="cuda")
    with vision.lap(jobs):
        for _ in range(10):
            matrix @ matrix
    assert vision.seconds == 0
    torch.cuda.synchronize()
    vision.settle()
    assert 0.005 < vision.seconds < 5 and clocks[0].vision_s == vision.seconds
