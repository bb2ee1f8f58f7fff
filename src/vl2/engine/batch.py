"""Ints become tensors here, and only here: a `StepBatch` → `StepInputs` and `SamplingInputs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vl2.core.tiling import TileGeometry
from vl2.engine.device_rows import DeviceRows
from vl2.engine.draws import LogitEdit, edit_of, uniform
from vl2.engine.pages import cache_slots
from vl2.engine.picture_rows import image_tokens
from vl2.engine.scheduler import Chunk, StepBatch
from vl2.engine.sequence import UNKNOWN, Sequence
from vl2.engine.staging import send
from vl2.model.step import QueryRows, StepInputs
from vl2.ops.attention.batch import AttentionBatch, ChunkShape, count_decodes
from vl2.ops.rows import RowRounding
from vl2.ops.sampling.rows import SamplingRows

MAX_TOP_K, BELOW_ONE = np.iinfo(np.int32).max, np.nextafter(np.float32(1), np.float32(0))
"""No vocabulary has so many tokens; a draw is from all that is below 1."""


@dataclass(frozen=True, slots=True)
class BatchShape:
    """What a model's steps have in common."""

    page_size: int
    spare_page: int
    rounding: RowRounding
    geometry: TileGeometry
    device: torch.device


@dataclass(frozen=True, slots=True)
class PackedStep:
    """A step's numbers on the host: the chunks' tokens one after the other, rounded up by tokens of no sequence."""

    shapes: list[ChunkShape]
    token_ids: np.ndarray  # [T] int64; UNKNOWN where the token is not known here yet
    positions: np.ndarray  # [T] int64
    kv_slots: np.ndarray  # [T] int64
    unknown: np.ndarray  # [U, 2] int64: (token of the step, row of what the device keeps) of unknown ones
    image_rows: np.ndarray  # [I] int64
    image_sources: np.ndarray  # [I] int64
    block_tables: np.ndarray  # [S, most pages] int32
    last_chunks: list[int]  # those whose next token is wanted
    logit_rows: np.ndarray  # [L] int64: their last tokens, rounded up

    @property
    def is_fresh(self) -> bool:
        """Whether no chunk has anything before it."""
        return all(chunk.length == chunk.context_length for chunk in self.shapes)

    @property
    def last_shapes(self) -> list[ChunkShape]:
        return [ChunkShape(row, 1, self.shapes[idx].context_length) for row, idx in enumerate(self.last_chunks)]


def pack_step(chunks: list[Chunk], shape: BatchShape) -> PackedStep:
    token_ids: list[int] = []
    shapes = []
    image_rows, image_sources = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for chunk in chunks:
        row = len(token_ids)
        token_ids += chunk.sequence.token_ids[chunk.start : chunk.end]
        shapes.append(ChunkShape(row, chunk.length, chunk.end))
        for image_positions, sources in image_tokens(chunk, shape.geometry):
            image_rows.append(image_positions - chunk.start + row)
            image_sources.append(sources)
    tables = block_tables([chunk.sequence for chunk in chunks])
    positions, kv_slots = _places(chunks, tables, shape.page_size)
    last = [idx for idx, chunk in enumerate(chunks) if chunk.is_last]
    logit_rows = [shapes[idx].start + shapes[idx].length - 1 for idx in last]
    unknown = [(shapes[idx].start, chunks[idx].sequence.row) for idx in last if token_ids[shapes[idx].start] == UNKNOWN]
    num_spare = shape.rounding.up(len(token_ids)) - len(token_ids)
    token_ids += [0] * num_spare
    spare_slots = np.full(num_spare, shape.spare_page * shape.page_size)
    logit_rows += [0] * (shape.rounding.up(max(1, len(last))) - len(last))
    return PackedStep(
        shapes=shapes,
        token_ids=np.asarray(token_ids),
        positions=np.concatenate([positions, np.zeros(num_spare, np.int64)]),
        kv_slots=np.concatenate([kv_slots, spare_slots]),
        unknown=np.asarray(unknown, np.int64).reshape(-1, 2),
        image_rows=np.concatenate(image_rows),
        image_sources=np.concatenate(image_sources),
        block_tables=tables,
        last_chunks=last,
        logit_rows=np.asarray(logit_rows),
    )


def _places(chunks: list[Chunk], tables: np.ndarray, page_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each token: its position, and the cache row that it goes to. Many chunks are a token each: all go at once."""
    lengths = np.asarray([chunk.length for chunk in chunks])
    before = np.cumsum(lengths) - lengths
    positions = np.arange(lengths.sum()) + np.repeat([chunk.start for chunk in chunks] - before, lengths)
    pages = tables[np.repeat(np.arange(len(chunks)), lengths), positions // page_size]
    return positions, cache_slots(pages, positions, page_size)


def step_inputs(step: PackedStep, shape: BatchShape, rows: DeviceRows | None = None) -> StepInputs:
    """Onto the device, by one copy: an index that is a list would go there by itself, and wait for the step before.

    Tokens that are not known here yet are in `rows`.
    """
    arrays = [step.token_ids, step.positions, step.kv_slots, step.logit_rows, step.image_rows, step.image_sources]
    arrays += [step.unknown, step.block_tables, *chunk_lengths(step.shapes)]
    arrays += [step.block_tables[step.last_chunks], *chunk_lengths(step.last_shapes)]
    ids, positions, slots, last_rows, *rest = send(arrays, shape.device)
    image_rows, image_sources, unknown, tables, starts, lengths, last_tables, last_starts, last_lengths = rest
    if rows is not None and len(step.unknown):
        ids[unknown[:, 0]] = rows.last_tokens[unknown[:, 1]]
    multiple, is_exact = shape.rounding.multiple, shape.rounding.is_exact
    longest = max(chunk.length for chunk in step.shapes)
    if is_exact:  # a prompt's single token is not computed as one that decodes
        longest = max(longest, 2)
    every = AttentionBatch(
        chunks=tuple(step.shapes),
        block_tables=tables,
        query_starts=starts,
        context_lengths=lengths,
        max_query_rows=longest,
        row_multiple=multiple,
        is_fresh=step.is_fresh,
        num_decodes=count_decodes(step.shapes) if longest > 1 and not is_exact else 0,
        has_fixed_splits=is_exact,
    )
    ends = AttentionBatch(
        tuple(step.last_shapes), last_tables, last_starts, last_lengths, 1, multiple, has_fixed_splits=is_exact
    )
    return StepInputs(
        token_ids=ids,
        positions=positions,
        kv_slots=slots,
        queries=QueryRows(None, every),
        last_queries=QueryRows(last_rows, ends),
        num_logits=len(step.last_chunks),
        image_rows=image_rows,
        image_sources=image_sources,
        rounding=shape.rounding,
    )


def chunk_lengths(shapes: list[ChunkShape]) -> tuple[np.ndarray, np.ndarray]:
    """(first query row of each chunk and the end of the last, context lengths), int32."""
    ends = [shape.start + shape.length for shape in shapes]
    return np.asarray([0, *ends], np.int32), np.asarray([shape.context_length for shape in shapes], np.int32)


def block_tables(sequences: list[Sequence]) -> np.ndarray:
    """[S, most pages], padded with page 0, which attention never reads beyond a sequence's length."""
    tables = np.zeros((len(sequences), max(len(sequence.pages) for sequence in sequences)), np.int32)
    for row, sequence in zip(tables, sequences, strict=True):
        row[: len(sequence.pages)] = sequence.pages
    return tables


def sampling_arrays(sequences: list[Sequence], size: int) -> dict[str, np.ndarray]:
    """The fields of `SamplingRows` for the next token of the sequences, filled up to `size` rows."""
    params = [sequence.params for sequence in sequences]
    fields: dict[str, tuple[list[Any], type]] = {
        "temperatures": ([p.temperature for p in params], np.float32),
        "top_ks": ([min(p.top_k, MAX_TOP_K) for p in params], np.int32),
        "top_ps": ([p.top_p for p in params], np.float32),
        "min_ps": ([p.min_p for p in params], np.float32),
        "uniforms": ([uniform(s) if s.params.temperature else 0.0 for s in sequences], np.float32),
    }
    arrays: dict[str, np.ndarray] = {name: np.zeros(size, dtype) for name, (_, dtype) in fields.items()}
    for name, (values, _) in fields.items():
        arrays[name][: len(values)] = values
    np.minimum(arrays["uniforms"], BELOW_ONE, out=arrays["uniforms"])  # float32 rounds what is closer to 1 up to it
    return arrays


def sampling_rows(sequences: list[Sequence], device: torch.device) -> SamplingRows:
    arrays = sampling_arrays(sequences, len(sequences))
    return SamplingRows.of(dict(zip(arrays, send(list(arrays.values()), device), strict=True)))


@dataclass(frozen=True, slots=True)
class SamplingInputs:
    """How to choose the next token of L sequences: what concerns single rows, then what concerns all."""

    edits: tuple[LogitEdit, ...]  # bias, penalties and bans of single rows
    masks: tuple[tuple[int, np.ndarray], ...]  # (row, [V] bool): tokens that its grammar allows
    rows: SamplingRows
    logprob_rows: list[int]
    num_logprobs: list[int]  # alternatives wanted, of each logprob row


def sampling_inputs(batch: StepBatch, device: torch.device) -> SamplingInputs:
    sequences = [chunk.sequence for chunk in batch.sampled]
    logprob_rows = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
    return SamplingInputs(
        edits=tuple(edit for row, sequence in enumerate(sequences) if (edit := edit_of(row, sequence)) is not None),
        masks=tuple(
            (row, sequence.constraint.next_mask.result())
            for row, sequence in enumerate(sequences)
            if sequence.constraint is not None
        ),
        rows=sampling_rows(sequences, device),
        logprob_rows=logprob_rows,
        num_logprobs=[sequences[row].params.logprobs or 0 for row in logprob_rows],
    )
