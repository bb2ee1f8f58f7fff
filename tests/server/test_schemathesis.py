"""A short run of `schemathesis_run`; `make fuzz` runs the long one."""

from __future__ import annotations

from server.schemathesis_run import run


def test_no_answer_to_made_up_requests_is_a_5xx_or_undocumented() -> None:
    counts = run(200)
    assert sum(counts.values()) >= 150
    assert len({name.rpartition(" ")[0] for name in counts}) >= 25  # operations
