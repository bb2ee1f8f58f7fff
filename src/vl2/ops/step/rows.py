"""What a decoding step begins with, as tensors that a CUDA graph can hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """S sequences of which one token each is computed; a filler has context length 0."""

    rows: torch.Tensor  # [S] int32: the sequence's row in what the device keeps
    positions: torch.Tensor  # [S] int32: of the token
    pages: torch.Tensor  # [S] int32: the page that its cache row goes to


@dataclass(frozen=True, slots=True)
class DecodeStart:
    embeds: torch.Tensor  # [S, C]
    positions: torch.Tensor  # [S] int64
    slots: torch.Tensor  # [S] int64: page · page size + offset
    block_tables: torch.Tensor  # [S, max pages] int32
