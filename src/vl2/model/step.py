"""Every tensor of one step. Built by `engine/batch.py`, the only place where ints become tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vl2.ops.attention import ChunkShape
from vl2.ops.rows import RowRounding


@dataclass(frozen=True, slots=True)
class StepInputs:
    """T tokens of S sequences, packed one after the other; T is rounded up by tokens of no sequence,
    whose cache rows go to the pool's spare page.
    """

    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64
    kv_slots: torch.Tensor  # [T] int64: page · page size + offset, where each token's cache row goes
    block_tables: torch.Tensor  # [S, max pages] int64
    chunks: tuple[ChunkShape, ...]  # S of them, on the host
    image_rows: torch.Tensor  # [I] int64: tokens of this step that are picture tokens
    image_sources: torch.Tensor  # [I] int64: their rows of the feature table (model/vl2.py)
    logit_rows: torch.Tensor  # [L] int64: tokens whose next token is wanted, rounded up likewise
    num_logits: int  # of them really wanted
    rounding: RowRounding  # of row counts
