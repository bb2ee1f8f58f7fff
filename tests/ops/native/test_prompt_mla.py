"""MLA's prompts by the library: keys and values are expanded and attended to, and a row's bits are its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.attention.reference import attend_mla
from vl2.ops.linear import can_pack
from vl2.ops.native.linear import pack_linear
from vl2.ops.rope.table import rope_table

HEADS, RANK, NOPE, ROPE, VALUE = 4, 64, 32, 16, 24
KV_B = torch.randn(HEADS * (NOPE + VALUE), RANK, generator=torch.Generator().manual_seed(1)).bfloat16() / 8
ROPE_TABLE = rope_table(ROPE, 96, 10000.0, None, "cpu")

pytestmark = [
    pytest.mark.cpu_only,
    pytest.mark.skipif(
        not can_pack(KV_B) or pack_linear(KV_B) is None, reason="the library multiplies where there are matrix units"
    ),
]


def attend(expand: bool, begin: int, end: int) -> torch.Tensor:
    """Query rows `begin` to `end` of one sequence in the deterministic mode."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(90, HEADS, NOPE + ROPE, generator=generator).bfloat16()
    pool = torch.randn(7, 16, RANK + ROPE, generator=generator).bfloat16()
    pages = torch.tensor([[6, 2, 3, 5, 1, 4]], dtype=torch.int32)
    batch = replace(AttentionBatch.of([ChunkShape(0, end - begin, end)], pages), has_fixed_splits=True)
    own = pack_linear(KV_B) if expand else None
    positions = torch.arange(begin, end)
    return attend_mla(q[begin:end], KV_B, pool, ROPE_TABLE, positions, batch, 0.15, expand=own)


def test_expanded_it_is_what_absorbed_is():
    torch.testing.assert_close(attend(True, 0, 90).float(), attend(False, 0, 90).float(), atol=0.02, rtol=0.02)


def test_a_row_has_the_same_bits_in_any_chunks():
    parts = [attend(True, 0, 33), attend(True, 33, 34), attend(True, 34, 90)]
    assert torch.equal(torch.cat(parts), attend(True, 0, 90))
