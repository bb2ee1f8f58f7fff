"""Freed memory is kept: counted by the pages that the kernel had to give, in a process of its own. What a server is
made of is not looked through again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = """
import resource, sys, threading
import numpy as np
from vl2.core.heap import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "kept" else True

def work():
    for _ in range(3):
        pictures = [np.ones(3_000_000, np.uint8) for _ in range(3)]  # what is first needed is not counted
        del pictures
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(10):
        pictures = [np.ones(3_000_000, np.uint8) for _ in range(3)]
        del pictures
    print(int(kept), resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


SETTLE = """
import gc
from vl2.core.heap import settle
from vl2.core.config import ServerConfig
from vl2.server.app import create_app
from fakes import FakeModel
app = create_app(FakeModel(), ServerConfig())
settle()
print(len(gc.get_objects()))
"""

GARBAGE = """
import gc, weakref
from vl2.core.heap import settle
gc.disable()
class Node: pass
node = Node()
node.itself = node
seen = weakref.ref(node)
del node
settle()
print(seen())
"""


def num_pages(how: str) -> int:
    told = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True, timeout=60)
    is_kept, pages = map(int, told.stdout.split())
    if not is_kept:
        pytest.skip("there is no glibc")
    return pages


def test_memory_of_the_last_picture_serves_the_next() -> None:
    assert num_pages("kept") < 100 < num_pages("given back")


def test_what_nobody_needs_does_not_stay() -> None:
    told = subprocess.run([sys.executable, "-c", GARBAGE], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.split() == ["None"]


def test_the_garbage_collector_leaves_the_app_alone() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    told = subprocess.run(
        [sys.executable, "-c", SETTLE], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    assert int(told.stdout) < 1000
