"""What steps cost, by kind."""

from __future__ import annotations

import pytest

from vl2.core.stats import EngineStats, Tally, sum_stats
from vl2.engine.meter import STEP_KINDS, StepMeter, kind_of
from vl2.engine.pacing import StepLoad


@pytest.mark.parametrize(
    ("load", "kind"),
    [
        (StepLoad(3, 0, 0), "decode"),
        (StepLoad(0, 40, 0), "prefill"),
        (StepLoad(3, 40, 0), "mixed"),
        (StepLoad(3, 40, 2), "vision"),
        (StepLoad(0, 0, 2), "vision"),
    ],
)
def test_a_step_has_one_kind(load: StepLoad, kind: str) -> None:
    assert kind_of(load) == kind


def test_a_step_counts_once_by_its_kind_and_size() -> None:
    meter = StepMeter()
    meter.observe(StepLoad(3, 0, 0), 3, 0.004)
    meter.observe(StepLoad(0, 40, 0), 1, 0.02)
    assert set(meter.seconds) == set(STEP_KINDS)
    assert meter.seconds["decode"].total == 0.004 and sum(meter.seconds["decode"].counts) == 1
    sizes = meter.sequences.snapshot()
    counts = dict(zip(sizes.bounds, sizes.counts, strict=False))
    assert (counts[1], counts[4]) == (1, 1)
    assert sizes.total == 4


def test_a_value_at_a_bound_lies_below_it_as_prometheus_has_it() -> None:
    tally = Tally((1, 2))
    for value in (1, 1.5, 2, 9):
        tally.observe(value)
    assert tally.snapshot().counts == (1, 2, 1)


def test_the_sum_over_replicas_adds_distributions_too() -> None:
    meter = StepMeter()
    meter.observe(StepLoad(3, 0, 0), 3, 0.004)
    one = EngineStats(
        num_running=1,
        step_sequences=meter.sequences.snapshot(),
        step_seconds={kind: tally.snapshot() for kind, tally in meter.seconds.items()},
    )
    both = sum_stats([one, EngineStats(num_running=2), one])
    assert both.num_running == 4
    assert both.step_sequences.total == 6 and sum(both.step_seconds["decode"].counts) == 2
