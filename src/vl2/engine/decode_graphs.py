"""Decoding steps as CUDA graphs: one launch for embedding, decoder, logits and sampling, for each size of batch."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
import torch

from vl2.engine.batch import uniform
from vl2.engine.device_rows import DeviceRows
from vl2.engine.scheduler import Chunk
from vl2.model.kv_pool import KVPool
from vl2.model.step import QueryRows, StepInputs
from vl2.model.vl2 import DeepseekVL2
from vl2.ops.attention.batch import AttentionBatch
from vl2.ops.rows import RowRounding
from vl2.ops.sampling.rows import SamplingRows
from vl2.ops.step.rows import DecodeRows

log = logging.getLogger(__name__)

NUM_INTS, NUM_FLOATS = 5, 4
"""Rows of a graph's input: (row, position, page, context length, top-k), (temperature, top-p, min-p, draw)."""


def graph_sizes(max_sequences: int) -> list[int]:
    """Batch sizes that have a graph of their own; a batch is filled up to the next one."""
    sizes = [1, 2, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128]
    sizes += list(range(160, max_sequences + 32, 32))
    return [size for size in sizes if size < max_sequences] + [max_sequences]


class DecodeGraphs:
    """Captured at the start, from the largest to the smallest, so that all share the largest one's memory."""

    def __init__(self, model: DeepseekVL2, pool: KVPool, rows: DeviceRows, max_sequences: int) -> None:
        self.model, self.pool, self.rows = model, pool, rows
        self.sizes = graph_sizes(max_sequences)
        self._graphs: dict[int, tuple[torch.Tensor, torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}
        started_s = time.monotonic()
        memory = torch.cuda.graph_pool_handle()
        for size in reversed(self.sizes):
            self._capture(size, memory)
        log.info("%d decoding graphs captured in %.1f s", len(self.sizes), time.monotonic() - started_s)

    def run(self, chunks: list[Chunk]) -> tuple[torch.Tensor, torch.Tensor]:
        """One token of each sequence: logits [S, V] float32 and sampled tokens [S], valid until the next run.

        The sampled tokens are also kept in the device's rows, where the next step finds them.
        """
        self.rows.enter([chunk.sequence for chunk in chunks])
        size = next(size for size in self.sizes if size >= len(chunks))
        inputs, graph, logits, tokens = self._graphs[size]
        inputs.copy_(torch.from_numpy(self._pack(chunks, size)).pin_memory(), non_blocking=True)
        graph.replay()
        return logits[: len(chunks)], tokens[: len(chunks)]

    def _pack(self, chunks: list[Chunk], size: int) -> np.ndarray:
        """[9, size] int32, the last four rows being bits of float32."""
        page_size = self.pool.page_size
        ints = self._idle_ints(size)
        floats = np.zeros((NUM_FLOATS, size), np.float32)
        positions = [chunk.start for chunk in chunks]
        params = [chunk.sequence.params for chunk in chunks]
        used = slice(len(chunks))
        ints[0, used] = [chunk.sequence.row for chunk in chunks]
        ints[1, used] = positions
        ints[2, used] = [chunk.sequence.pages[chunk.start // page_size] for chunk in chunks]
        ints[3, used] = ints[1, used] + 1
        ints[4, used] = [p.top_k for p in params]
        floats[0, used] = [p.temperature for p in params]
        floats[1, used] = [p.top_p for p in params]
        floats[2, used] = [p.min_p for p in params]
        floats[3, used] = [uniform(chunk.sequence) if chunk.sequence.params.temperature else 0.0 for chunk in chunks]
        return np.concatenate((ints, floats.view(np.int32)))

    def _idle_ints(self, size: int) -> np.ndarray:
        """What fills up a batch: the spare row and the pool's spare page, with an empty context."""
        ints = np.zeros((NUM_INTS, size), np.int32)
        ints[0], ints[2] = self.rows.spare_row, self.pool.num_pages
        return ints

    def _capture(self, size: int, memory: Any) -> None:
        inputs = torch.zeros(NUM_INTS + NUM_FLOATS, size, dtype=torch.int32, device=self.model.device)
        inputs[:NUM_INTS] = torch.from_numpy(self._idle_ints(size))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step(inputs)  # compiles kernels and makes libraries allocate what they keep
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=memory):
            logits, tokens = self._step(inputs)
        self._graphs[size] = inputs, graph, logits, tokens

    def _step(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, positions, pages, contexts, top_ks = inputs[:NUM_INTS]
        temperatures, top_ps, min_ps, uniforms = inputs[NUM_INTS:].view(torch.float32)
        ops, decoder, kept = self.model.ops, self.model.decoder, self.rows
        step_rows = DecodeRows(rows, positions, pages)
        start = ops.begin_decode(
            step_rows, kept.block_tables, kept.last_tokens, decoder.embed_tokens, self.pool.page_size
        )
        row_starts = torch.arange(len(rows) + 1, dtype=torch.int32, device=rows.device)
        queries = QueryRows(None, AttentionBatch((), start.block_tables, row_starts, contexts, max_query_rows=1))
        nothing = start.positions[:0]
        step = StepInputs(
            token_ids=nothing,  # already looked up
            positions=start.positions,
            kv_slots=start.slots,
            queries=queries,
            last_queries=queries,
            num_logits=len(rows),
            image_rows=nothing,
            image_sources=nothing,
            rounding=RowRounding(),
        )
        logits = decoder.logits(decoder(start.embeds, step, self.pool))
        tokens = ops.sample(logits, SamplingRows(temperatures, top_ks, top_ps, min_ps, uniforms))
        kept.last_tokens[rows.long()] = tokens
        return logits, tokens
