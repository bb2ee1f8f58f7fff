"""What a GPU's memory loses to CUDA itself: the same arithmetic for the engine and for `vl2 plan`."""

from __future__ import annotations

RUNTIME_BYTES = 800 * 2**20
"""CUDA's context, cuBLAS and the first kernels: gone before anything of ours is allocated."""
GRAPH_BYTES = 1500 * 2**20
"""CUDA graphs and their kernels, recorded after the cache is made: 1,490 to 1,580 MiB on an H100 (bench/plan.py)."""


def usable_bytes(total: int, share: float) -> int:
    """Of a card's memory, for weights, workspace and cache; what is left over has room for the graphs at least."""
    return max(0, min(int(total * share), total - GRAPH_BYTES))
