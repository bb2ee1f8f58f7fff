"""Whose queries a step holds, as attention needs it: on the host for the reference, on the device for kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """One sequence's part of a step: query rows `start : start + length`; the last is at `context_length - 1`."""

    start: int
    length: int
    context_length: int


def count_decodes(chunks: Sequence[ChunkShape]) -> int:
    """Leading chunks of one row."""
    return next((idx for idx, chunk in enumerate(chunks) if chunk.length > 1), len(chunks))


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Chunks of S sequences, whose query rows are packed one after the other; rows after the last chunk belong to none.

    A decoding sequence is a chunk of one row, so decode, prefill and mixed steps are one case.
    """

    chunks: tuple[ChunkShape, ...]
    block_tables: torch.Tensor  # [S, max pages] int32: page i of a sequence holds its positions from i · page size on
    query_starts: torch.Tensor  # [S + 1] int32: chunk s has the query rows query_starts[s] : query_starts[s + 1]
    context_lengths: torch.Tensor  # [S] int32: positions that the chunk's last row sees; 0: no chunk, nothing is done
    max_query_rows: int  # of one chunk; 1: all decode
    row_multiple: int = 1  # row counts of the reference's GEMMs are rounded up to it (ops/rows.py)
    is_fresh: bool = False  # every chunk starts at position 0: the step's own rows are all of the context
    num_decodes: int = 0  # leading chunks of one row each
    may_decode: bool = False  # the host does not know how many chunks of one row lead: kernels look for themselves
    has_fixed_splits: bool = False  # a row's bits depend on its own context alone: no choice by rows, at some cost

    @property
    def num_rows(self) -> int | None:
        """Query rows that belong to a chunk. None: the host does not know."""
        return self.chunks[-1].start + self.chunks[-1].length if self.chunks else None

    def split(self) -> tuple[AttentionBatch, AttentionBatch]:
        """(the leading decodes, the rest); rows of both are counted from the step's first row on."""
        num = self.num_decodes
        return replace(self.part(0, num), max_query_rows=1), self.part(num, len(self.block_tables))

    def part(self, begin: int, end: int) -> AttentionBatch:
        """Chunks begin … end - 1; their rows are counted from the step's first row on."""
        own = slice(begin, end)
        return replace(
            self,
            chunks=self.chunks[own],
            block_tables=self.block_tables[own],
            query_starts=self.query_starts[begin : end + 1],
            context_lengths=self.context_lengths[own],
            num_decodes=0,
        )

    @classmethod
    def of(cls, chunks: Sequence[ChunkShape], block_tables: torch.Tensor, row_multiple: int = 1) -> AttentionBatch:
        """With the device's view computed from the host's. Chunks follow each other without gaps, from row 0 on."""
        starts = [chunk.start for chunk in chunks] + [chunks[-1].start + chunks[-1].length if chunks else 0]
        device = block_tables.device
        return cls(
            chunks=tuple(chunks),
            block_tables=block_tables,
            query_starts=torch.tensor(starts, dtype=torch.int32, device=device),
            context_lengths=torch.tensor([c.context_length for c in chunks], dtype=torch.int32, device=device),
            max_query_rows=max((chunk.length for chunk in chunks), default=0),
            row_multiple=row_multiple,
        )
