"""A quantised matrix, or a stack of them, in the layout of a backend."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch

from vl2.core.quantization import WeightScheme


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """[(E,) N, K]: N outputs, K inputs, in G groups. Only its layout knows how the codes lie in their tensor."""

    codes: torch.Tensor  # [(E,) N, ...]
    scales: torch.Tensor  # [(E,) G, N, ...]
    scheme: WeightScheme
    in_width: int
    _matrices: dict[int, QuantizedWeight] = field(default_factory=dict, repr=False, compare=False)

    @property
    def out_width(self) -> int:
        return self.codes.shape[-2]

    def __getitem__(self, index: int) -> QuantizedWeight:
        """One matrix of a stack; views are made once, as a decoding step takes dozens of them."""
        found = self._matrices.get(index)
        if found is None:
            found = QuantizedWeight(self.codes[index], self.scales[index], self.scheme, self.in_width)
            self._matrices[index] = found
        return found

    def rows(self, start: int, count: int) -> QuantizedWeight:
        """Some outputs of a matrix; a view, to be stored into."""
        rows = slice(start, start + count)
        return QuantizedWeight(self.codes[rows], self.scales[:, rows], self.scheme, self.in_width)


class QuantizedLayout(Protocol):
    """How a backend holds quantised weights."""

    def holds(self, scheme: WeightScheme, out_width: int, in_width: int) -> bool:
        """Whether it can. `out_width` is that of every part that is stored by itself."""
        ...

    def empty(
        self, shape: tuple[int, ...], scheme: WeightScheme, dtype: torch.dtype, device: torch.device | str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Uninitialised codes and scales of [(E,) N, K] weights; scales in `dtype`, of float8 in float32."""
        ...

    def store(self, weight: QuantizedWeight, codes: torch.Tensor, scales: torch.Tensor) -> None:
        """Fill one matrix, or rows of it, from codes [N, K] int8 or float8 and scales [N, G]."""
        ...

    def draw(self, weight: QuantizedWeight, std: float, generator: torch.Generator) -> None:
        """Random codes, and scales for weights of the standard deviation `std`; of a stack as well."""
        ...

    def dequantize(self, weight: QuantizedWeight) -> torch.Tensor:
        """One matrix as [N, K] in the scales' dtype."""
        ...
