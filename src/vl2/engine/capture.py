"""Recording work as a CUDA graph."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def capture(work: Callable[[], T], memory: Any) -> tuple[torch.cuda.CUDAGraph, T]:
    """(a graph that does `work` again at each replay, what `work` returned: tensors that replays write anew).

    memory  of `torch.cuda.graph_pool_handle`: graphs that never run at the same time may share theirs
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()  # compiles kernels and makes libraries allocate what they keep
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Engines of one process may start together: what another thread allocates meanwhile is no error of this capture.
    with _nothing_collected(), torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
        result = work()
    return graph, result


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """An engine before this one may still lie about, in a cycle: to give its graphs and memory back ends a capture."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
