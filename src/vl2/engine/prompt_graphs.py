"""Steps with prompt tokens as CUDA graphs: a short prompt takes the GPU less time than Python needs to launch it.

A step is filled up to one of a few numbers of tokens, and to few or to all sequences that may run. MLA takes a prompt
out of the latent space, which a graph can do where nothing lies before the prompts (a fresh step); its other steps, and
what is larger than the largest graph, keep the GPU busy long enough and are launched piece by piece. Where a row's bits
must not depend on the step (`rounding.is_exact`), prompts are computed in one way only: no step holds anything that
decodes, and MLA's have a graph only if they are fresh.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
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
FEW_SIZES = (32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048)
MANY_SIZES = (256, 512, 1024, 1536, 2048)
LARGE_SIZES = (3072, 4096, 6144, 8192)
"""Numbers of tokens: with few sequences, with many, with either."""
MAX_ABSORBED_TOKENS = 512
"""Of MLA steps that are not fresh."""

Graph = tuple[StaticInputs, torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a graph was captured for."""

    is_few: bool
    is_fresh: bool
    num_tokens: int


def graph_kinds(is_mla: bool, max_tokens: int, is_exact: bool = False) -> list[Kind]:
    few = [Kind(True, False, size) for size in FEW_SIZES + LARGE_SIZES]
    many = [Kind(False, False, size) for size in MANY_SIZES + LARGE_SIZES]
    largest_absorbed = 0 if is_exact else MAX_ABSORBED_TOKENS
    kinds = [kind for kind in few + many if not is_mla or kind.num_tokens <= largest_absorbed]
    kinds += [Kind(True, True, size) for size in FEW_SIZES] if is_mla else []
    return [kind for kind in kinds if kind.num_tokens <= max_tokens]


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
        rounding: RowRounding = RowRounding(),
    ) -> None:
        self.model, self.features, self.pool, self.rows, self.rounding = model, features, pool, rows, rounding
        self.num_sequences = {True: min(FEW_SEQUENCES, max_sequences), False: max_sequences}
        self.is_mla = model.config.language.mla is not None
        self._graphs: dict[Kind, Graph] = {}
        started_s, memory = time.monotonic(), torch.cuda.graph_pool_handle()
        for kind in sorted(graph_kinds(self.is_mla, max_tokens, rounding.is_exact), key=lambda kind: -kind.num_tokens):
            inputs = StaticInputs(self._arrays(kind), model.device)
            graph, results = capture(partial(self._step, inputs.tensors, kind), memory)
            self._graphs[kind] = inputs, graph, *results
        log.info("%d prompt graphs captured in %.1f s", len(self._graphs), time.monotonic() - started_s)

    @property
    def sizes(self) -> list[int]:
        """Numbers of tokens that steps with many sequences are filled up to, if all of them have a graph."""
        return [kind.num_tokens for kind in self._graphs if not kind.is_few] if not self.is_mla else []

    def run(self, batch: StepBatch, step: PackedStep) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Logits [L, V] float32 and tokens [L] sampled for the sequences whose next token is wanted, valid until the
        next run; the tokens are also kept in the device's rows. None: there is no graph for such a step.
        """
        num_chunks, num_tokens, is_fresh = len(step.shapes), len(step.token_ids), self.is_mla and step.is_fresh
        fitting = [
            kind
            for kind in self._graphs
            if kind.num_tokens >= num_tokens and self.num_sequences[kind.is_few] >= num_chunks
            and (is_fresh or not kind.is_fresh)
        ]  # fmt: skip
        if not fitting:
            return None
        kind = min(fitting, key=lambda kind: (kind.num_tokens, kind.is_fresh < is_fresh, not kind.is_few))
        inputs, graph, logits, tokens = self._graphs[kind]
        inputs.fill(self._arrays(kind, batch, step))
        graph.replay()
        wanted = len(step.last_chunks)
        return logits[:wanted], tokens[:wanted]

    def _arrays(
        self, kind: Kind, batch: StepBatch | None = None, step: PackedStep | None = None
    ) -> dict[str, np.ndarray]:
        """A step's numbers, filled up; without a step all is filler."""
        num_tokens, num_sequences = kind.num_tokens, self.num_sequences[kind.is_few]
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

    def _step(self, t: dict[str, torch.Tensor], kind: Kind) -> tuple[torch.Tensor, torch.Tensor]:
        decoder, kept = self.model.decoder, self.rows
        unknown = t["unknown_rows"]
        ids = torch.where(unknown >= 0, kept.last_tokens[unknown.clamp(0)], t["ids"])
        embeds = decoder.embed_tokens[ids]
        embeds = torch.where(t["is_image"].unsqueeze(1), self.features[t["sources"]], embeds)
        every = AttentionBatch(
            (), t["tables"], t["starts"], t["contexts"], max_query_rows=len(ids), is_fresh=kind.is_fresh,
            may_decode=not self.is_mla and not self.rounding.is_exact, has_fixed_splits=self.rounding.is_exact,
        )  # fmt: skip
        one_row = torch.arange(len(t["logit_rows"]) + 1, dtype=torch.int32, device=ids.device)
        last_tables = t["tables"][t["logit_chunks"]]
        last = AttentionBatch((), last_tables, one_row, t["logit_contexts"], 1, has_fixed_splits=self.rounding.is_exact)
        step = StepInputs(
            token_ids=ids,
            positions=t["positions"],
            kv_slots=t["slots"],
            queries=QueryRows(None, every),
            last_queries=QueryRows(t["logit_rows"], last),
            num_logits=len(t["logit_rows"]),
            image_rows=ids[:0],  # already looked up
            image_sources=ids[:0],
            rounding=self.rounding,
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
