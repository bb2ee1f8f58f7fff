"""bfloat16 weights in 12 bits without loss (source/short.h): a step that waits for memory reads a quarter less of it.

For routed experts: each has few rows to multiply. Products have the bits that they would have.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch

from vl2.ops.native import builds
from vl2.ops.native.structures import BFLOAT12_BLOCKS, BFLOAT16_BLOCKS, Matrix

ROOM = 7 / 8
"""Of its bytes that a shortened matrix may take: half of what can be saved."""


@dataclass(frozen=True, slots=True)
class Shortener:
    """Of one build of the library."""

    library: Any

    def shorten(self, matrix: Matrix) -> tuple[Matrix, torch.Tensor] | None:
        """`matrix` as of `describe_strips` → itself in 12 bits, and what holds it; None: it has too many exponents."""
        assert matrix.layout == BFLOAT16_BLOCKS and matrix.block % 32 == 0
        num_bytes = 2 * -(-matrix.out_width // matrix.block) * matrix.block * matrix.padded_in
        room = torch.empty(int(num_bytes * ROOM), dtype=torch.uint8)
        used = self.library.vl2_shorten(ctypes.byref(matrix), room.data_ptr(), room.numel())
        if not used:
            return None
        held = room[:used].clone()
        short = Matrix.from_buffer_copy(matrix)
        short.layout, short.data = BFLOAT12_BLOCKS, held.data_ptr()
        return short, held


def shortener() -> Shortener | None:
    """None: this processor's build has no such products. Matrix units read bfloat16 from memory as it is."""
    path, _ = builds.find()
    library = None if path is None else builds.load(path)
    return Shortener(library) if hasattr(library, "vl2_shorten") else None
