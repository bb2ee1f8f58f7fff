"""Ints become tensors here, and only here: a `StepBatch` → `StepInputs` and `SamplingInputs`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from vl2.core.tiling import TileGeometry, image_layout
from vl2.engine.device_rows import DeviceRows
from vl2.engine.scheduler import Chunk, StepBatch, TileJob
from vl2.engine.sequence import UNKNOWN, Sequence
from vl2.engine.staging import send
from vl2.model.step import QueryRows, StepInputs
from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.rows import RowRounding
from vl2.ops.sampling.rows import SamplingRows


@dataclass(frozen=True, slots=True)
class BatchShape:
    """What a model's steps have in common."""

    page_size: int
    spare_page: int
    rounding: RowRounding
    geometry: TileGeometry
    device: torch.device


def step_inputs(chunks: list[Chunk], shape: BatchShape, rows: DeviceRows | None = None) -> StepInputs:
    """Pack the chunks' tokens one after the other. Tokens that are not known here yet are in `rows`."""
    size = shape.page_size
    token_ids: list[int] = []
    positions, kv_slots, shapes, logit_rows = [], [], [], []
    image_rows, image_sources = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for chunk in chunks:
        sequence, row = chunk.sequence, len(token_ids)
        token_ids += sequence.token_ids[chunk.start : chunk.end]
        own_positions = np.arange(chunk.start, chunk.end)
        positions.append(own_positions)
        kv_slots.append(np.asarray(sequence.pages)[own_positions // size] * size + own_positions % size)
        shapes.append(ChunkShape(row, chunk.length, chunk.end))
        for image_positions, sources in _image_tokens(chunk, shape.geometry):
            image_rows.append(image_positions - chunk.start + row)
            image_sources.append(sources)
        if chunk.is_last:
            logit_rows.append(len(token_ids) - 1)

    num_logits = len(logit_rows)
    num_spare = shape.rounding.up(len(token_ids)) - len(token_ids)
    token_ids += [0] * num_spare
    positions.append(np.zeros(num_spare, np.int64))
    kv_slots.append(np.full(num_spare, shape.spare_page * size))
    logit_rows += [0] * (shape.rounding.up(max(1, num_logits)) - num_logits)
    last = [idx for idx, chunk in enumerate(chunks) if chunk.is_last]
    last_shapes = [ChunkShape(row, 1, chunks[idx].end) for row, idx in enumerate(last)]
    unknown = [(shapes[i].start, chunks[i].sequence.row) for i in last if token_ids[shapes[i].start] == UNKNOWN]

    arrays = [np.asarray(token_ids), np.concatenate(positions), np.concatenate(kv_slots), np.asarray(logit_rows)]
    arrays += [np.concatenate(image_rows), np.concatenate(image_sources), np.asarray(unknown, np.int64).reshape(-1, 2)]
    arrays += [_block_tables([chunk.sequence for chunk in chunks]), *_lengths(shapes), *_lengths(last_shapes)]
    ids, positions_, slots, last_rows, *rest = send(arrays, shape.device)
    of_images, sources_, of_unknown, tables, starts, lengths, last_starts, last_lengths = rest
    if rows is not None and unknown:
        ids[of_unknown[:, 0]] = rows.last_tokens[of_unknown[:, 1]]
    multiple, longest = shape.rounding.multiple, max(chunk.length for chunk in chunks)
    every = AttentionBatch(tuple(shapes), tables, starts, lengths, longest, multiple)
    last_tables = tables if len(last) == len(chunks) else tables[last]
    ends = AttentionBatch(tuple(last_shapes), last_tables, last_starts, last_lengths, 1, multiple)
    return StepInputs(
        token_ids=ids,
        positions=positions_,
        kv_slots=slots,
        queries=QueryRows(None, every),
        last_queries=QueryRows(last_rows, ends),
        num_logits=num_logits,
        image_rows=of_images,
        image_sources=sources_,
        rounding=shape.rounding,
    )


def _lengths(shapes: list[ChunkShape]) -> tuple[np.ndarray, np.ndarray]:
    """(first query row of each chunk and the end of the last, context lengths), int32."""
    ends = [shape.start + shape.length for shape in shapes]
    return np.asarray([0, *ends], np.int32), np.asarray([shape.context_length for shape in shapes], np.int32)


def _block_tables(sequences: list[Sequence]) -> np.ndarray:
    """[S, most pages], padded with page 0, which attention never reads beyond a sequence's length."""
    tables = np.zeros((len(sequences), max(len(sequence.pages) for sequence in sequences)), np.int32)
    for row, sequence in zip(tables, sequences, strict=True):
        row[: len(sequence.pages)] = sequence.pages
    return tables


def _image_tokens(chunk: Chunk, geometry: TileGeometry) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """(positions, rows of the feature table) of the picture tokens in a chunk, which may cut a span anywhere."""
    for index, span in chunk.sequence.spans_within(chunk.start, chunk.end):
        first, last = max(chunk.start, span.start), min(chunk.end, span.start + span.length)
        layout = image_layout(span.tiles_wide, span.tiles_high, geometry)[first - span.start : last - span.start]
        slots = np.asarray(chunk.sequence.tile_slots[index])
        tile, row = np.divmod(layout, geometry.tokens_per_tile)
        sources = slots[np.maximum(tile, 0)] * geometry.tokens_per_tile + row
        yield np.arange(first, last), np.where(layout < 0, layout, sources)


def tile_pixels(jobs: list[TileJob]) -> np.ndarray:
    """[N, side, side, 3] uint8 of the tiles to encode."""
    return np.stack([job.sequence.prompt.tiles[job.tile_idx] for job in jobs])


def sampling_rows(sequences: list[Sequence], device: torch.device) -> SamplingRows:
    """Temperatures, cut-offs and draws of the sequences."""
    params = [sequence.params for sequence in sequences]
    floats = [[p.temperature for p in params], [p.top_p for p in params], [p.min_p for p in params]]
    draws = [uniform(sequence) if sequence.params.temperature else 0.0 for sequence in sequences]
    arrays = [np.asarray(values, np.float32) for values in (*floats, draws)]
    temperatures, top_ps, min_ps, uniforms, top_ks = send(
        [*arrays, np.asarray([p.top_k for p in params], np.int32)], device
    )
    return SamplingRows(temperatures, top_ks, top_ps, min_ps, uniforms)


@dataclass(frozen=True, slots=True)
class SamplingInputs:
    """How to choose the next token of L sequences: what concerns single rows, then what concerns all."""

    edits: tuple[LogitEdit, ...]  # bias, penalties and bans of single rows
    masks: tuple[tuple[int, np.ndarray], ...]  # (row, [V] bool): tokens that its grammar allows
    rows: SamplingRows
    logprob_rows: list[int]
    num_logprobs: list[int]  # alternatives wanted, of each logprob row


@dataclass(frozen=True, slots=True)
class LogitEdit:
    """What is added to, divided out of or banned from the logits of one row."""

    row: int
    bias: dict[int, float]
    seen_ids: list[int]  # for the repetition penalty: prompt and output
    repetition_penalty: float
    output_counts: dict[int, int]
    presence_penalty: float
    frequency_penalty: float
    banned_ids: list[int]


def sampling_inputs(batch: StepBatch, device: torch.device) -> SamplingInputs:
    sequences = [chunk.sequence for chunk in batch.sampled]
    logprob_rows = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
    return SamplingInputs(
        edits=tuple(edit for row, sequence in enumerate(sequences) if (edit := _edit(row, sequence)) is not None),
        masks=tuple(
            (row, sequence.constraint.next_mask.result())
            for row, sequence in enumerate(sequences)
            if sequence.constraint is not None
        ),
        rows=sampling_rows(sequences, device),
        logprob_rows=logprob_rows,
        num_logprobs=[sequences[row].params.logprobs or 0 for row in logprob_rows],
    )


def _edit(row: int, sequence: Sequence) -> LogitEdit | None:
    params = sequence.params
    has_counts = bool(params.presence_penalty or params.frequency_penalty)
    has_repetition = params.repetition_penalty != 1.0
    if not (params.logit_bias or has_repetition or has_counts or sequence.ngrams):
        return None
    return LogitEdit(
        row=row,
        bias=params.logit_bias,
        seen_ids=sorted(set(sequence.token_ids)) if has_repetition else [],
        repetition_penalty=params.repetition_penalty,
        output_counts=dict(sequence.output_counts) if has_counts else {},
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        banned_ids=sorted(sequence.ngrams.banned(sequence.token_ids)) if sequence.ngrams else [],
    )


def uniform(sequence: Sequence) -> float:
    """A number in [0, 1) that depends on (seed, choice, output position) alone, never on the batch or on history."""
    key = f"{sequence.params.seed}/{sequence.choice_idx}/{sequence.num_output_tokens}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64
