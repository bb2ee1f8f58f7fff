"""Functions that training on a GPU compiles, so that each is few passes over memory; elsewhere they run as written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_ALL: list[Fusable] = []
#: Sizes that never vary: colours, coordinates of a point and a box, coordinates in the vocabulary, the vocabulary, a tile's pixels,
#: patches and tokens. Kernels know them, all others are for any size.
_FIXED = {1, 2, 3, 4, 1000, 2432, 384, 729, 196, 27 * 27 * 2}


class Fusable:
    """A function of tensors and constants, as written until `compile_all`. Its tensors ought to be contiguous: strides may vary, too."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.plain = self.now = plain
        self.__doc__, self.__name__ = plain.__doc__, plain.__name__
        _ALL.append(self)

    def __call__(self, *args: Any) -> Any:
        if self.now is not self.plain:
            for t in args:
                for dim, size in enumerate(t.shape if isinstance(t, torch.Tensor) else ()):
                    if size not in _FIXED:
                        torch._dynamo.maybe_mark_dynamic(t, dim)
        return self.now(*args)


def compile_all() -> None:
    """Floats are constants."""
    torch._dynamo.config.specialize_float = True
    torch._dynamo.config.cache_size_limit = max(32, torch._dynamo.config.cache_size_limit)
    for f in _ALL:
        f.now = torch.compile(f.plain)


def as_written() -> None:
    for f in _ALL:
        f.now = f.plain
