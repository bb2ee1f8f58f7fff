"""How a decoding step begins: each sequence's token, position, cache slot and pages."""

from __future__ import annotations

import torch

from vl2.ops.step.rows import DecodeRows, DecodeStart


def begin_decode(
    step: DecodeRows, kept_tables: torch.Tensor, last_tokens: torch.Tensor, embedding: torch.Tensor, page_size: int
) -> DecodeStart:
    """`Backend.begin_decode` (ops/backend.py)."""
    rows, positions = step.rows.long(), step.positions.long()
    kept_tables[rows, positions // page_size] = step.pages
    slots = step.pages.long() * page_size + positions % page_size
    return DecodeStart(embedding[last_tokens[rows]], positions, slots, kept_tables[rows])
