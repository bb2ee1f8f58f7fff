"""Every tensor of one step. Built by `engine/batch.py`, the only place where ints become tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vl2.ops.attention.batch import AttentionBatch
from vl2.ops.rows import RowRounding


@dataclass(frozen=True, slots=True)
class QueryRows:
    """The tokens that a layer computes results for: all of a step's, but in the last layer only those whose next token
    is wanted. Every layer writes the cache rows of all tokens.
    """

    rows: torch.Tensor | None  # [Q] int64: tokens of the step; None: all of them
    sequences: AttentionBatch  # whose rows they are

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, ...] → [Q, ...]."""
        return x if self.rows is None else x.index_select(0, self.rows)


@dataclass(frozen=True, slots=True)
class StepInputs:
    """T tokens of S sequences, packed one after the other; T is rounded up by tokens of no sequence,
    whose cache rows go to the pool's spare page.
    """

    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64
    kv_slots: torch.Tensor  # [T] int64: page · page size + offset, where each token's cache row goes
    queries: QueryRows  # all tokens
    last_queries: QueryRows  # tokens whose next token is wanted, rounded up likewise; at least one row
    num_logits: int  # of them really wanted
    image_rows: torch.Tensor  # [I] int64: tokens of this step that are picture tokens
    image_sources: torch.Tensor  # [I] int64: their rows of the feature table (model/vl2.py)
    rounding: RowRounding  # of row counts
