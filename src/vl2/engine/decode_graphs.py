"""Decoding steps as CUDA graphs: one launch for embedding, decoder, logits and sampling, for each size of batch."""

from __future__ import annotations

import logging
import time
from functools import partial

import numpy as np
import torch

from vl2.engine.batch import sampling_arrays
from vl2.engine.capture import capture
from vl2.engine.device_rows import DeviceRows
from vl2.engine.scheduler import Chunk
from vl2.engine.sequence import UNKNOWN
from vl2.engine.staging import StaticInputs, send
from vl2.model.kv_pool import KVPool
from vl2.model.step import QueryRows, StepInputs
from vl2.model.vl2 import DeepseekVL2
from vl2.ops.attention.batch import AttentionBatch
from vl2.ops.rows import RowRounding
from vl2.ops.sampling.rows import SamplingRows
from vl2.ops.step.rows import DecodeRows

log = logging.getLogger(__name__)


def graph_sizes(max_sequences: int) -> list[int]:
    """Batch sizes that have a graph of their own; a batch is filled up to the next one."""
    sizes = [1, 2, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128]
    sizes += list(range(160, max_sequences + 32, 32))
    return [size for size in sizes if size < max_sequences] + [max_sequences]


class DecodeGraphs:
    """Captured at the start, from the largest to the smallest, so that all share the largest one's memory."""

    def __init__(
        self,
        model: DeepseekVL2,
        pool: KVPool,
        rows: DeviceRows,
        max_sequences: int,
        rounding: RowRounding = RowRounding(),
    ) -> None:
        self.model, self.pool, self.rows, self.rounding = model, pool, rows, rounding
        self.graphs: dict[int, tuple[StaticInputs, torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}
        started_s, memory = time.monotonic(), torch.cuda.graph_pool_handle()
        for size in reversed(graph_sizes(max_sequences)):
            inputs = StaticInputs(self._arrays([], size), model.device)
            graph, results = capture(partial(self._step, inputs.tensors), memory)
            self.graphs[size] = inputs, graph, *results
        log.info("%d decoding graphs captured in %.1f s", len(self.graphs), time.monotonic() - started_s)

    def run(self, chunks: list[Chunk]) -> tuple[torch.Tensor, torch.Tensor]:
        """One token of each sequence: logits [S, V] float32 and sampled tokens [S], valid until the next run.

        The sampled tokens are also kept in the device's rows, where the next step finds them; those that the host
        knows are written there first, for the device may have sampled another.
        """
        self.rows.enter([chunk.sequence for chunk in chunks])
        if known := [chunk for chunk in chunks if chunk.sequence.token_ids[chunk.start] != UNKNOWN]:
            ids = np.asarray([chunk.sequence.token_ids[chunk.start] for chunk in known], np.int64)
            self.rows.keep_tokens([chunk.sequence for chunk in known], *send([ids], self.rows.device))
        size = min(size for size in self.graphs if size >= len(chunks))
        inputs, graph, logits, tokens = self.graphs[size]
        inputs.fill(self._arrays(chunks, size))
        graph.replay()
        return logits[: len(chunks)], tokens[: len(chunks)]

    def _arrays(self, chunks: list[Chunk], size: int) -> dict[str, np.ndarray]:
        """What fills up a batch is the spare row and the pool's spare page, with an empty context."""
        page_size, used = self.pool.page_size, slice(len(chunks))
        arrays = {
            "rows": np.full(size, self.rows.spare_row, np.int32),
            "positions": np.zeros(size, np.int32),
            "pages": np.full(size, self.pool.num_pages, np.int32),
            "contexts": np.zeros(size, np.int32),
        }
        arrays["rows"][used] = [chunk.sequence.row for chunk in chunks]
        arrays["positions"][used] = [chunk.start for chunk in chunks]
        arrays["pages"][used] = [chunk.sequence.pages[chunk.start // page_size] for chunk in chunks]
        arrays["contexts"][used] = arrays["positions"][used] + 1
        return arrays | sampling_arrays([chunk.sequence for chunk in chunks], size)

    def _step(self, t: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        ops, decoder, kept = self.model.ops, self.model.decoder, self.rows
        start = ops.begin_decode(
            DecodeRows(t["rows"], t["positions"], t["pages"]),
            kept.block_tables,
            kept.last_tokens,
            decoder.embed_tokens,
            self.pool.page_size,
        )
        row_starts = torch.arange(len(t["rows"]) + 1, dtype=torch.int32, device=start.positions.device)
        batch = AttentionBatch(
            (), start.block_tables, row_starts, t["contexts"], 1, has_fixed_splits=self.rounding.is_exact
        )
        queries = QueryRows(None, batch)
        nothing = start.positions[:0]
        step = StepInputs(
            token_ids=nothing,  # already looked up
            positions=start.positions,
            kv_slots=start.slots,
            queries=queries,
            last_queries=queries,
            num_logits=len(row_starts) - 1,
            image_rows=nothing,
            image_sources=nothing,
            rounding=self.rounding,
        )
        logits = decoder.logits(decoder(start.embeds, step, self.pool))
        tokens = ops.sample(logits, SamplingRows.of(t))
        kept.last_tokens[t["rows"].long()] = tokens
        return logits, tokens
