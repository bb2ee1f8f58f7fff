"""Memory of the host that an engine may take."""

from __future__ import annotations

import re
from pathlib import Path


def available_host_bytes() -> int:
    """What the kernel says can be used without swapping, and no more than a container's limit leaves."""
    meminfo = Path("/proc/meminfo").read_text()
    available = int(re.search(r"MemAvailable:\s+(\d+) kB", meminfo)[1]) * 1024  # type: ignore[index]  # always there
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available
