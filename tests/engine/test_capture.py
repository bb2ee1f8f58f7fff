"""Recording work as a CUDA graph, with stand-ins for what a GPU does."""

import contextlib
import gc
import types

import pytest
import torch

from vl2.engine.capture import capture


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in dict(
        Stream=lambda: stream, current_stream=lambda: stream, CUDAGraph=object, stream=contextlib.nullcontext
    ).items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool, capture_error_mode: contextlib.nullcontext())


def test_work_runs_once_to_warm_up_and_once_to_be_recorded():
    runs = []
    _, result = capture(lambda: runs.append(len(runs)) or len(runs), None)
    assert runs == [0, 1] and result == 2


def test_no_garbage_is_collected_while_work_is_recorded():
    """What is found then may be another engine's memory, and to free it would end the recording."""
    enabled = []
    capture(lambda: enabled.append(gc.isenabled()), None)
    assert enabled == [True, False] and gc.isenabled()

    def fail() -> None:
        if not gc.isenabled():
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        capture(fail, None)
    assert gc.isenabled()
