"""What Linux says of the processor. No torch."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
AVX2 = frozenset("avx2 fma f16c bmi1 bmi2 movbe".split())
"""Words that x86-64-v3 needs."""


def cpu_words() -> set[str]:
    """Word by word: its maker, its instruction sets. Empty where nobody says."""
    return set(CPUINFO.read_text().split()) if CPUINFO.exists() else set()
