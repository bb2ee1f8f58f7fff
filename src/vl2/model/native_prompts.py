"""A prompt through all layers of the decoder by one call of the native library, on matrix units."""

from __future__ import annotations

import ctypes

import torch

from vl2.model.kv_pool import KVPool
from vl2.model.step import QueryRows, StepInputs
from vl2.ops.attention.batch import AttentionBatch
from vl2.ops.native.prompts import present_workers
from vl2.ops.native.structures import ChunkRows, DecoderJob, Model


class NativePrompts:
    def __init__(self, described: Model, kept: object, pool: KVPool) -> None:
        """kept  what the description points to, beside the decoder's own weights"""
        self._model, self._kept, self._pool = described, kept, pool

    def run(self, embeds: torch.Tensor, step: StepInputs, pool: KVPool) -> torch.Tensor:
        """embeds [T, C] bfloat16, overwritten → normed hidden states [L, C] of the tokens whose next one is wanted.

        Rows that belong to no sequence are left out.
        """
        assert pool is self._pool, "the description points to another"
        chunks, last = _chunk_rows(step.queries.sequences), _chunk_rows(step.last_queries.sequences)
        last_rows = _rows(step.last_queries)[: step.num_logits]
        out = embeds.new_empty(step.num_logits, embeds.shape[1])
        given = (embeds, step.positions, step.kv_slots, last_rows)
        assert all(x.is_contiguous() for x in given) and embeds.dtype == torch.bfloat16
        own = DecoderJob(ctypes.addressof(self._model), *(x.data_ptr() for x in given))
        own.chunks, own.last_chunks, own.out = ctypes.addressof(chunks), ctypes.addressof(last), out.data_ptr()
        own.rows, own.num_chunks = step.queries.sequences.num_rows or 0, len(chunks)
        own.num_last, own.num_last_chunks = step.num_logits, len(last)
        if own.rows:
            present_workers().decode(own)
        return out


def _rows(queries: QueryRows) -> torch.Tensor:
    rows = queries.sequences.num_rows
    return queries.rows if queries.rows is not None else torch.arange(rows or 0)


def _chunk_rows(batch: AttentionBatch) -> ctypes.Array[ChunkRows]:
    tables = batch.block_tables
    assert tables.dtype == torch.int32 and (len(tables) == 0 or tables.stride(1) == 1)
    rows = (ChunkRows * len(batch.chunks))()
    for idx, chunk in enumerate(batch.chunks):
        table = tables.data_ptr() + idx * tables.stride(0) * tables.element_size()
        rows[idx] = ChunkRows(table, chunk.start, chunk.length, chunk.context_length)
    return rows
