"""Steps with prompt tokens as CUDA graphs: a short prompt takes the GPU less time than Python needs to launch it.

A step is filled up to one of a few numbers of tokens, and to few or to all sequences that may run. What is larger than
the largest graph keeps the GPU busy long enough, and is launched piece by piece.
"""

from __future__ import annotations

import logging
import time
from functools import partial

import numpy as np
import torch

from vl2.engine.batch import PackedStep, chunk_lengths, sampling_arrays
from vl2.engine.capture import capture
from vl2.engine.device_rows import DeviceRows
from vl2.engine.scheduler import StepBatch
from vl2.engine.sequence import Sequence
from vl2.engine.staging import StaticInputs
from vl2.model.kv_pool import KVPool
from vl2.model.step import QueryRows, StepInputs
from vl2.model.vl2 import DeepseekVL2
from vl2.ops.attention.batch import AttentionBatch
from vl2.ops.rows import RowRounding
from vl2.ops.sampling.rows import SamplingRows

log = logging.getLogger(__name__)

FEW_SEQUENCES = 8
SIZES = {True: (32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048), False: (256, 512, 1024, 2048)}
"""Numbers of tokens, with few sequences and with many."""

Graph = tuple[StaticInputs, torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]


class PromptGraphs:
    """Captured at the start, from the largest to the smallest, so that all share the largest one's memory."""

    def __init__(
        self,
        model: DeepseekVL2,
        features: torch.Tensor,
        pool: KVPool,
        rows: DeviceRows,
        *,
        max_sequences: int,
        max_tokens: int,
    ) -> None:
        self.model, self.features, self.pool, self.rows = model, features, pool, rows
        self.num_sequences = {True: min(FEW_SEQUENCES, max_sequences), False: max_sequences}
        self._graphs: dict[tuple[bool, int], Graph] = {}
        started_s, memory = time.monotonic(), torch.cuda.graph_pool_handle()
        for is_few, sizes in SIZES.items():
            for size in reversed([size for size in sizes if size <= max_tokens]):
                inputs = StaticInputs(self._arrays(size, self.num_sequences[is_few]), model.device)
                graph, results = capture(partial(self._step, inputs.tensors), memory)
                self._graphs[is_few, size] = inputs, graph, *results
        log.info("%d prompt graphs captured in %.1f s", len(self._graphs), time.monotonic() - started_s)

    def run(self, batch: StepBatch, step: PackedStep) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Logits [L, V] float32 and tokens [L] sampled for the sequences whose next token is wanted, valid until the
        next run; the tokens are also kept in the device's rows. None: no graph is large enough.
        """
        is_few = len(step.shapes) <= self.num_sequences[True]
        fitting = [size for few, size in self._graphs if few == is_few and size >= len(step.token_ids)]
        if not fitting:
            return None
        inputs, graph, logits, tokens = self._graphs[is_few, min(fitting)]
        inputs.fill(self._arrays(min(fitting), self.num_sequences[is_few], batch, step))
        graph.replay()
        wanted = len(step.last_chunks)
        return logits[:wanted], tokens[:wanted]

    def _arrays(
        self, num_tokens: int, num_sequences: int, batch: StepBatch | None = None, step: PackedStep | None = None
    ) -> dict[str, np.ndarray]:
        """A step's numbers, filled up; without a step all is filler."""
        spare_slot = self.pool.num_pages * self.pool.page_size
        arrays = {
            "ids": np.zeros(num_tokens, np.int64),
            "positions": np.zeros(num_tokens, np.int64),
            "slots": np.full(num_tokens, spare_slot),
            "unknown_rows": np.full(num_tokens, -1, np.int64),
            "sources": np.zeros(num_tokens, np.int64),
            "is_image": np.zeros(num_tokens, bool),
            "tables": np.zeros((num_sequences, self.rows.block_tables.shape[1]), np.int32),
            "starts": np.zeros(num_sequences + 1, np.int32),
            "contexts": np.zeros(num_sequences, np.int32),
            "logit_rows": np.zeros(num_sequences, np.int64),
            "logit_chunks": np.zeros(num_sequences, np.int64),
            "logit_contexts": np.zeros(num_sequences, np.int32),
            "kept_rows": np.full(num_sequences, self.rows.spare_row),
        }
        sequences = [chunk.sequence for chunk in batch.sampled] if batch is not None else []
        if step is not None:
            _fill(arrays, sequences, step)
        return arrays | sampling_arrays(sequences, num_sequences)

    def _step(self, t: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        decoder, kept = self.model.decoder, self.rows
        unknown = t["unknown_rows"]
        ids = torch.where(unknown >= 0, kept.last_tokens[unknown.clamp(0)], t["ids"])
        embeds = decoder.embed_tokens[ids]
        embeds = torch.where(t["is_image"].unsqueeze(1), self.features[t["sources"]], embeds)
        every = AttentionBatch((), t["tables"], t["starts"], t["contexts"], max_query_rows=len(ids))
        one_row = torch.arange(len(t["logit_rows"]) + 1, dtype=torch.int32, device=ids.device)
        last_tables = t["tables"][t["logit_chunks"]]
        last = AttentionBatch((), last_tables, one_row, t["logit_contexts"], max_query_rows=1)
        step = StepInputs(
            token_ids=ids,
            positions=t["positions"],
            kv_slots=t["slots"],
            queries=QueryRows(None, every),
            last_queries=QueryRows(t["logit_rows"], last),
            num_logits=len(t["logit_rows"]),
            image_rows=ids[:0],  # already looked up
            image_sources=ids[:0],
            rounding=RowRounding(),
        )
        logits = decoder.logits(decoder(embeds, step, self.pool))
        tokens = self.model.ops.sample(logits, SamplingRows.of(t))
        kept.last_tokens[t["kept_rows"]] = tokens
        return logits, tokens


def _fill(arrays: dict[str, np.ndarray], sequences: list[Sequence], step: PackedStep) -> None:
    num, wanted = len(step.token_ids), len(step.last_chunks)
    arrays["ids"][:num] = np.maximum(step.token_ids, 0)
    arrays["positions"][:num], arrays["slots"][:num] = step.positions, step.kv_slots
    arrays["unknown_rows"][step.unknown[:, 0]] = step.unknown[:, 1]
    arrays["is_image"][step.image_rows] = True
    arrays["sources"][step.image_rows] = step.image_sources
    chunks, pages = step.block_tables.shape
    arrays["tables"][:chunks, :pages] = step.block_tables
    starts, contexts = chunk_lengths(step.shapes)
    arrays["starts"][: chunks + 1], arrays["starts"][chunks + 1 :] = starts, starts[-1]
    arrays["contexts"][:chunks] = contexts
    arrays["logit_rows"][:wanted], arrays["logit_chunks"][:wanted] = step.logit_rows[:wanted], step.last_chunks
    arrays["logit_contexts"][:wanted] = contexts[step.last_chunks]
    arrays["kept_rows"][:wanted] = [sequence.row for sequence in sequences]
