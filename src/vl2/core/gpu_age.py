"""Which GPUs the kernels run on: the same words for the engine that refuses one and for `vl2 doctor`. No torch."""

from __future__ import annotations

AMPERE = (8, 0)
"""Compute capability from which on Triton supports GPUs; older ones have no bfloat16 either."""


def why_too_old(name: str, capability: tuple[int, int]) -> str | None:
    if capability >= AMPERE:
        return None
    have, need = (".".join(map(str, version)) for version in (capability, AMPERE))
    return f"{name} has compute capability {have}, but vl2's kernels need {need} (Ampere, as A10 and A100) or later"
