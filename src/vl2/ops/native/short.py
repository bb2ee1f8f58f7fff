"""bfloat16 weights in 12 bits without loss (source/short.h): a step that waits for memory reads a quarter less of it.

Products have the bits that they would have. Where vdpbf16ps multiplies, this pays for routed experts, of which each has
few rows; on matrix units for whatever a step reads.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch

from vl2.ops.native import builds
from vl2.ops.native.matrices import describe_strips
from vl2.ops.native.structures import BFLOAT12_BLOCKS, Matrix

ROOM = 7 / 8
"""Of its bytes that a shortened matrix may take: half of what can be saved."""


@dataclass(frozen=True, slots=True)
class Shortener:
    """Of one build of the library."""

    build: Any

    def shorten(self, packed: torch.Tensor) -> tuple[Matrix, torch.Tensor] | None:
        """packed [Out, In] as `describe_strips` knows it → the same in 12 bits, and what holds it.

        None: it is not known, or has too many exponents.
        """
        matrix = describe_strips(packed)
        return None if matrix is None else self.shorten_blocks(matrix, packed)

    def shorten_blocks(self, matrix: Matrix, held: torch.Tensor) -> tuple[Matrix, torch.Tensor] | None:
        """The same of a matrix in BFLOAT16_BLOCKS, which becomes the other one if it can, and of what holds it."""
        num_bytes = 2 * -(-matrix.out_width // matrix.block) * matrix.block * matrix.padded_in
        room = torch.empty(int(num_bytes * ROOM), dtype=torch.uint8)
        used = self.build.vl2_shorten(ctypes.byref(matrix), room.data_ptr(), room.numel())
        if not used:
            return None
        short = room[:used].clone()
        matrix.layout, matrix.data = BFLOAT12_BLOCKS, short.data_ptr()
        return matrix, short


def shortener() -> Shortener | None:
    """None: this processor's build has no such products."""
    path, _ = builds.find()
    library = None if path is None else builds.load(path)
    return Shortener(library) if hasattr(library, "vl2_shorten") else None
