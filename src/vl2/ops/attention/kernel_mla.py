"""MLA in Triton: few rows read the latent cache as it is, long chunks take it out of the latent space first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton

from vl2.ops.attention.batch import AttentionBatch
from vl2.ops.attention.kernel import LOG2_E, Splits, block, chunks, counts, num_tiles, row_counts, tile_for
from vl2.ops.attention.kernel_expanded import gather_rows, prefill_expanded
from vl2.ops.attention.kernel_latent import decode_latent, expand_splits, prefill_latent
from vl2.ops.chain import chained
from vl2.ops.exact_linear.kernel import linear as exact_linear
from vl2.ops.rope.kernel import absorb_queries, expand_values, write_and_absorb
from vl2.ops.rope.table import RopeTable
from vl2.ops.saturate import saturate

MIN_ROWS = 48
"""Of a chunk, in the mean: with fewer, kv_b costs more on all positions than the absorbed form does on these rows."""

MAX_KEYS = 1 << 14
"""Positions taken out of the latent space at once, or as many as the step has rows: this bounds the memory."""

FEW_ROWS = 8
"""Decoding rows whose splits are added up by the kernel that takes them out of the latent space."""


def attend_mla(
    q: torch.Tensor,
    kv_b: torch.Tensor,
    pool: torch.Tensor,
    rope: RopeTable,
    positions: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
) -> torch.Tensor:
    """`Backend.attend_mla` (ops/backend.py). Positions follow from the batch."""
    if batch.max_query_rows > 1:
        q = q.contiguous()
    assert pool.is_contiguous() and kv_b.is_contiguous()
    assert all(x.shape[-1] * x.element_size() % 16 == 0 for x in (q, pool)) or q.dtype == torch.float32
    layer, num_rows = Layer.of(q, kv_b, pool, rope, scale), len(q)
    out = torch.empty(num_rows, layer.heads * layer.value, dtype=q.dtype, device=q.device)
    if not num_rows:
        return out
    if batch.max_query_rows <= 1:
        _decode(q, absorb_queries(q, layer.keys, batch.has_fixed_splits), layer, batch, out)
        return out
    if batch.has_fixed_splits:  # one form for all prompts, however long their chunks are
        for part, num_keys in _parts(num_rows, batch):
            _prefill_expanded(q, layer, part, num_keys, out, exact_linear)
        return out
    num, (decodes, rest) = batch.num_decodes, batch.split() if batch.num_decodes else (batch, batch)
    if num_keys := _num_expanded_keys(num_rows, num, rest):
        _prefill_expanded(q, layer, rest, num_keys, out)
    else:
        _prefill_absorbed(q, layer, rest, out)
    if num:  # last: prefill leaves anything in these rows
        _decode(q[:num], absorb_queries(q[:num], layer.keys), layer, decodes, out[:num])
    return out


def decode_mla(
    latent_and_key: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    q: torch.Tensor,
    kv_b: torch.Tensor,
    pool: torch.Tensor,
    rope: RopeTable,
    positions: torch.Tensor,
    slots: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
) -> torch.Tensor:
    """`Backend.decode_mla` (ops/backend.py)."""
    layer = Layer.of(q, kv_b, pool, rope, scale)
    absorbed = write_and_absorb(latent_and_key, norm_weight, eps, rope, positions, slots, pool, q, layer.keys)
    out = torch.empty(len(q), layer.heads * layer.value, dtype=q.dtype, device=q.device)
    if len(q):
        _decode(q, absorbed, layer, batch, out)
    return out


@dataclass(frozen=True)
class Layer:
    """What attention reads but the queries."""

    kv_b: torch.Tensor  # [H · (Dn + Dv), R]
    pool: torch.Tensor  # [pages, page size, R + Dr]
    rope: RopeTable
    scale: float  # of scores in units of log2
    heads: int
    nope: int

    @classmethod
    def of(cls, q: torch.Tensor, kv_b: torch.Tensor, pool: torch.Tensor, rope: RopeTable, scale: float) -> Layer:
        return cls(kv_b, pool, rope, scale * LOG2_E, q.shape[1], q.shape[2] - (pool.shape[2] - kv_b.shape[1]))

    @property
    def rank(self) -> int:
        return self.kv_b.shape[1]

    @property
    def value(self) -> int:
        return len(self.kv_b) // self.heads - self.nope

    @property
    def keys(self) -> torch.Tensor:
        """[H, Dn, R]"""
        return self.kv_b.unflatten(0, (self.heads, -1))[:, : self.nope]

    @property
    def values(self) -> torch.Tensor:
        """[H, Dv, R]"""
        return self.kv_b.unflatten(0, (self.heads, -1))[:, self.nope :]

    @property
    def sizes(self) -> dict[str, int]:
        page_size, width = self.pool.shape[1:]
        rope = width - self.rank
        sizes = dict(HEADS=self.heads, RANK=self.rank, NOPE=self.nope, ROPE=rope, PAGE_SIZE=page_size)
        return sizes | dict(BLOCK_R=block(self.rank), BLOCK_P=block(rope))


def _decode(q: torch.Tensor, absorbed: torch.Tensor, layer: Layer, batch: AttentionBatch, out: torch.Tensor) -> None:
    num_rows, heads, rank = len(q), layer.heads, layer.rank
    block_h, is_exact = min(block(heads), 32), batch.has_fixed_splits
    head_blocks = triton.cdiv(heads, block_h)
    tile = tile_for("decode_latent_one" if num_rows == 1 and not is_exact else "decode_latent", q.dtype)
    if num_rows * head_blocks > tile.programs and not is_exact:  # several share a multiprocessor
        tile = tile_for("decode_latent_many", q.dtype)
    splits = Splits.of(q, batch, tile, head_blocks, layer.pool.shape[1], rank)
    has_adder = num_rows <= FEW_ROWS and splits.count > 1 and not is_exact
    attended = q.new_empty(0 if has_adder else num_rows, heads, rank)
    decode_latent[head_blocks, splits.count, num_rows](
        absorbed, q, q.stride(0), layer.rope.cos, layer.rope.sin, layer.pool, attended, *splits.arguments(batch),
        layer.scale, *counts(batch, splits), **layer.sizes, BLOCK_H=block_h, SPLIT=splits.size,
        LAST_ADDS=splits.last_adds and not has_adder, HAS_ADDER=has_adder, STREAMS=tile.streams, **tile.options,
        **chained(q.device),
    )  # fmt: skip
    values = layer.values
    if not has_adder:
        splits.combine(attended, batch)
        expand_values(attended, values, out, is_exact)
        return
    block_d = min(32, block(layer.value))
    expand_splits[triton.cdiv(layer.value, block_d), heads, num_rows](
        splits.parts, splits.stats, values, out, batch.context_lengths, len(batch.block_tables), splits.count,
        values.stride(0), values.stride(1), HEADS=heads, RANK=rank, DIM=layer.value, BLOCK_R=block(rank),
        BLOCK_D=block_d, SPLIT=splits.size, BLOCK_N=tile.block_n, num_warps=4, **chained(q.device),
    )  # fmt: skip


def _prefill_absorbed(q: torch.Tensor, layer: Layer, batch: AttentionBatch, out: torch.Tensor) -> None:
    tile, attended = tile_for("prefill_latent", q.dtype), q.new_empty(*q.shape[:2], layer.rank)
    block_m = max(tile.block_m, block(layer.heads))
    prefill_latent[(num_tiles(len(q), batch, block_m // layer.heads),)](
        absorb_queries(q, layer.keys), q, layer.rope.cos, layer.rope.sin, layer.pool, attended, *chunks(batch),
        layer.scale, *row_counts(len(q), batch), **layer.sizes, BLOCK_M=block_m, **tile.options,
    )  # fmt: skip
    expand_values(attended, layer.values, out)


def _num_expanded_keys(num_rows: int, num_decodes: int, batch: AttentionBatch) -> int:
    """How many positions these chunks see, if that is known and taking them out of the latent space pays; else 0."""
    if batch.is_fresh:
        return num_rows
    contexts = [chunk.context_length for chunk in batch.chunks]
    pays = num_rows - num_decodes >= MIN_ROWS * len(contexts)
    return sum(contexts) if pays and sum(contexts) <= max(MAX_KEYS, num_rows) else 0


def _parts(num_rows: int, batch: AttentionBatch) -> Iterator[tuple[AttentionBatch, int]]:
    """Chunks one after the other and how many positions they see, about as many as may be expanded at once."""
    if batch.is_fresh:
        yield batch, num_rows
        return
    assert batch.chunks, "in a graph the host does not know what these chunks see"
    begin, num_keys, most = 0, 0, max(MAX_KEYS, num_rows)
    for idx, chunk in enumerate(batch.chunks):
        if num_keys and num_keys + chunk.context_length > most:
            yield batch.part(begin, idx), num_keys
            begin, num_keys = idx, 0
        num_keys += chunk.context_length
    yield batch.part(begin, len(batch.chunks)), num_keys


def _prefill_expanded(
    q: torch.Tensor,
    layer: Layer,
    batch: AttentionBatch,
    num_keys: int,
    out: torch.Tensor,
    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.linear,
) -> None:
    """Take all positions of these chunks out of the latent space, one after the other, and attend to them there."""
    fresh = batch.is_fresh
    ends = batch.query_starts[1:] if fresh else batch.context_lengths.cumsum(0, dtype=torch.int32)
    rows = _gather(layer.pool, batch, ends, num_keys, q.dtype)
    keys_values = saturate(multiply(rows[:, : layer.rank], layer.kv_b))
    num_rows, heads, width = q.shape
    nope, value, tile = layer.nope, layer.value, tile_for("prefill_expanded", q.dtype)
    prefill_expanded[heads, num_tiles(num_rows, batch, tile.block_m)](
        q, keys_values, rows, layer.rope.cos, layer.rope.sin, out, batch.query_starts, batch.context_lengths, ends,
        layer.scale, len(batch.block_tables), num_rows,
        HEADS=heads, RANK=layer.rank, NOPE=nope, ROPE=width - nope, VALUE=value, BLOCK_NOPE=block(nope),
        BLOCK_P=block(width - nope), BLOCK_V=block(value), BLOCK_M=tile.block_m, **tile.options,
    )  # fmt: skip


def _gather(
    pool: torch.Tensor, batch: AttentionBatch, ends: torch.Tensor, num_keys: int, dtype: torch.dtype
) -> torch.Tensor:
    """[positions, R + Dr] dtype: the context of chunk s lies before row ends[s]."""
    page_size, width = pool.shape[1:]
    num_chunks, max_pages = batch.block_tables.shape
    rows = torch.empty(num_keys, width, dtype=dtype, device=pool.device)
    longest, block_n = min(num_keys, max_pages * page_size), 16
    if num_chunks:
        gather_rows[triton.cdiv(longest, block_n), num_chunks](
            pool, rows, batch.block_tables, batch.context_lengths, ends, max_pages,
            WIDTH=width, BLOCK_W=triton.next_power_of_2(width), PAGE_SIZE=page_size, BLOCK_N=block_n, num_warps=4,
        )  # fmt: skip
    return rows
