"""Attention outside the deterministic mode equals that within it; pages of others are NaN, so reading them shows."""

import dataclasses

import pytest
import torch

from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.attention.joint import can_join
from vl2.ops.attention.reference import attend_heads, attend_mla
from vl2.ops.rope.table import rope_table

PAGE_SIZE, HEADS = 4, 4


def decode_batch(lengths: list[int]) -> AttentionBatch:
    """Pages are handed out from the end of the pool on."""
    tables, free = torch.full((len(lengths), 16), 999, dtype=torch.int32), list(range(1, 64))
    for table, length in zip(tables, lengths, strict=True):
        for i in range(-(-length // PAGE_SIZE)):
            table[i] = free.pop()
    return AttentionBatch.of([ChunkShape(row, 1, length) for row, length in enumerate(lengths)], tables)


def written_pool(batch: AttentionBatch, *row: int, dtype: torch.dtype) -> torch.Tensor:
    pool = torch.full((64, PAGE_SIZE, *row), float("nan"), dtype=dtype)
    for table, chunk in zip(batch.block_tables, batch.chunks, strict=True):
        for i in range(chunk.context_length):
            pool[table[i // PAGE_SIZE], i % PAGE_SIZE] = torch.randn(*row)
    return pool


def assert_as_one_by_one(attend, batch: AttentionBatch, pool: torch.Tensor, dtype: torch.dtype) -> None:
    together, alone = attend(batch), attend(dataclasses.replace(batch, has_fixed_splits=True))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(together, alone, atol=tolerance, rtol=tolerance)
    assert not together[len(batch.chunks) :].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[9], [12, 12], [9, 16, 13]])
@pytest.mark.parametrize("kv_heads", [HEADS, 2])
def test_heads(lengths, dtype, kv_heads):
    torch.manual_seed(0)
    batch = decode_batch(lengths)
    pool = torch.stack([written_pool(batch, kv_heads, 16, dtype=dtype) for _ in range(2)])
    q = torch.randn(len(lengths) + 1, HEADS, 16).to(dtype)  # a row of no sequence at the end
    assert_as_one_by_one(lambda b: attend_heads(q, pool, b, 0.3), batch, pool[0], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[9], [12, 12], [9, 16, 13]])
def test_latent_rows(lengths, dtype):
    torch.manual_seed(0)
    batch, rank, nope, rotated, value = decode_batch(lengths), 16, 8, 4, 8
    pool = written_pool(batch, rank + rotated, dtype=dtype)
    q = torch.randn(len(lengths) + 1, HEADS, nope + rotated).to(dtype)
    kv_b, rope = torch.randn(HEADS * (nope + value), rank).to(dtype), rope_table(rotated, 64, 1e4, None, "cpu")
    positions = torch.tensor([length - 1 for length in lengths] + [0])
    assert_as_one_by_one(lambda b: attend_mla(q, kv_b, pool, rope, positions, b, 0.3), batch, pool, dtype)
    if dtype == torch.bfloat16:  # where kv_b is small, it is kept in float32
        wide = attend_mla(q, kv_b.float(), pool, rope, positions, batch, 0.3)
        torch.testing.assert_close(wide, attend_mla(q, kv_b, pool, rope, positions, batch, 0.3), atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latent_rows_of_prompts(dtype):
    """A prompt, a later chunk of another, and a token: expanded here, absorbed in the deterministic mode."""
    torch.manual_seed(0)
    rank, nope, rotated, value = 16, 8, 4, 8
    whole = decode_batch([7, 11, 20])
    pool = written_pool(whole, rank + rotated, dtype=dtype)
    batch = AttentionBatch.of([ChunkShape(0, 7, 7), ChunkShape(7, 4, 11), ChunkShape(11, 1, 20)], whole.block_tables)
    positions = torch.tensor([*range(7), *range(7, 11), 19, 0])
    q = torch.randn(13, HEADS, nope + rotated).to(dtype)  # a row of no sequence at the end
    kv_b, rope = torch.randn(HEADS * (nope + value), rank).to(dtype), rope_table(rotated, 64, 1e4, None, "cpu")
    fused, absorbed = (
        attend_mla(q, kv_b, pool, rope, positions, dataclasses.replace(batch, has_fixed_splits=fixed), 0.1)
        for fixed in (False, True)
    )
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(fused[:12], absorbed[:12], atol=tolerance, rtol=tolerance)


def test_contexts_of_very_different_lengths_are_not_filled_up():
    assert not can_join(decode_batch([1, 1, 1, 60]), torch.zeros(64, PAGE_SIZE, 20))


def test_decodes_beside_a_prompt_are_joined_or_come_one_by_one():
    torch.manual_seed(0)
    for lengths in ([9, 12, 16], [1, 1, 1, 1, 60]):
        whole = decode_batch([*lengths, 3])
        pool = torch.stack([written_pool(whole, HEADS, 16, dtype=torch.float32) for _ in range(2)])
        chunks = [*whole.chunks[:-1], ChunkShape(len(lengths), 3, 3)]
        batch, q = AttentionBatch.of(chunks, whole.block_tables), torch.randn(len(lengths) + 4, HEADS, 16)
        fast, exact = (
            attend_heads(q, pool, dataclasses.replace(batch, has_fixed_splits=fixed), 0.3) for fixed in (False, True)
        )
        torch.testing.assert_close(fast, exact, atol=1e-5, rtol=1e-5)
