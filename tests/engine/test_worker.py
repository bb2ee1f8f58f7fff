"""The loop around an engine, when the engine cannot be made."""

import re

import pytest

from vl2.core.config import EngineConfig
from vl2.engine.protocol import SetupFailed
from vl2.engine.worker import QueueInbox, run_engine


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), r"^there is not enough memory to load the model \(MemoryError: no message\); free some"),
        (
            RuntimeError("alloc_cpu: can't allocate memory: you tried to allocate 9 bytes"),
            "^there is not enough memory",
        ),
        (
            RuntimeError("CUDA error\nhere and there"),
            "^the engine cannot start: RuntimeError: CUDA error; its log shows",
        ),
    ],
)
def test_whatever_goes_wrong_is_one_line_for_whoever_started_it(monkeypatch, tmp_path, error, message):
    def fail(*_):
        raise error

    monkeypatch.setattr("vl2.engine.engine.open_runner", fail)
    told = []
    run_engine(tmp_path, EngineConfig(), QueueInbox(), told.append)
    [report] = told
    assert isinstance(report, SetupFailed)
    assert re.search(message, report.message) and "\n" not in report.message
