import contextlib
import ctypes
import mmap
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vl2.core.stats import resident_bytes
from vl2.engine import huge_pages
from vl2.engine.huge_pages import MADV_COLLAPSE, MADV_HUGEPAGE, PAGE_BYTES, collapse_pages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (?:.*\n)*?AnonHugePages:\s+(\d+) kB", re.MULTILINE)


def huge_bytes(memory: mmap.mmap) -> int:
    """Of the mappings that this memory lies in: others of the process come and go, as what was freed is given back."""
    own = ctypes.c_char.from_buffer(memory)
    first = ctypes.addressof(own)
    del own
    found = MAPPING.findall(Path("/proc/self/smaps").read_text())
    overlapping = (kib for start, end, kib in found if int(start, 16) < first + len(memory) and int(end, 16) > first)
    return 1024 * sum(map(int, overlapping))


@contextlib.contextmanager
def written() -> Iterator[mmap.mmap]:
    """128 MiB in small pages."""
    with mmap.mmap(-1, 64 * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        memory.write(b"\1" * len(memory))
        yield memory


def can_collapse() -> bool:
    """Whether this kernel does it when it is asked (Linux 6.1 or later), and has as many huge pages to give."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with written() as memory:
        memory.madvise(MADV_HUGEPAGE)
        start = ctypes.c_char.from_buffer(memory)
        first = -(-ctypes.addressof(start) // PAGE_BYTES) * PAGE_BYTES
        code = madvise(first, 63 * PAGE_BYTES, MADV_COLLAPSE)
        del start  # else the memory cannot be given back
        return code == 0


@pytest.mark.skipif(not SETTING.exists() or "[never]" in SETTING.read_text(), reason="this kernel has no huge pages")
def test_what_was_written_lies_in_huge_pages_afterwards():
    if not can_collapse():
        pytest.skip("this kernel collapses no pages, or has too few huge ones left")
    with written() as memory:
        before = huge_bytes(memory)
        collapse_pages()
        assert memory[:: len(memory) // 64] == b"\1" * 64
        assert huge_bytes(memory) - before >= 32 * PAGE_BYTES


def test_what_was_never_written_stays_away():
    """As a page cache's room, or what was freed: to collapse it would make it resident."""
    with mmap.mmap(-1, 64 * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.write(b"\1" * PAGE_BYTES)
        before = resident_bytes()
        collapse_pages()
        assert resident_bytes() - before < 16 * PAGE_BYTES


def test_only_whole_huge_pages_of_private_memory_are_asked_for(tmp_path, monkeypatch):
    (tmp_path / "maps").write_text(
        "7f0000100000-7f0000900000 rw-p 00000000 00:00 0 \n"
        "7f0001000000-7f0001100000 rw-p 00000000 00:00 0 \n"  # less than one
        "7f0002000000-7f0002400000 r--p 00000000 00:00 0 \n"
        "7f0003000000-7f0003400000 rw-p 00000000 08:01 42 /usr/lib/a library\n"
        "7f0004000000-7f0004400000 rw-s 00000000 00:01 7 /dev/shm/shared\n"
        "550000000000-550000400000 rw-p 00000000 00:00 0 [heap]\n"
    )
    monkeypatch.setattr(huge_pages, "MAPS", tmp_path / "maps")
    assert list(huge_pages._allocated()) == [(0x7F0000200000, 3 * PAGE_BYTES), (0x550000000000, 2 * PAGE_BYTES)]


def test_other_systems_have_nothing_of_it(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(huge_pages, "MAPS", None)
    collapse_pages()
