"""How weights are held in few bits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """Symmetric integers: weight ≈ code · scale, with a scale for each `group_size` inputs of each output."""

    bits: int  # 4 or 8
    group_size: int | None  # None: one scale for all inputs of an output

    def num_groups(self, in_width: int) -> int:
        return in_width // self.group_size if self.group_size else 1

    def __str__(self) -> str:
        return f"int{self.bits} in groups of {self.group_size}" if self.group_size else f"int{self.bits} by rows"
