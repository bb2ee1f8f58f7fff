"""What Linux says of the processor. No torch."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def cpu_words() -> set[str]:
    """Word by word: its maker, its instruction sets. Empty where nobody says."""
    return set(CPUINFO.read_text().split()) if CPUINFO.exists() else set()
