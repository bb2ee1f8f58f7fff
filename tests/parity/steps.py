"""Runs golden prompts through the bare model, without the engine, so that each stage can be looked at."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from golden_cases import GoldenCase, load_variant
from tests import device
from vl2.checkpoint.folder import read_model_config
from vl2.core.config import EngineConfig, ProcessorConfig
from vl2.core.types import GenerateRequest, Prompt, SamplingParams, TokenEvent
from vl2.engine.batch import BatchShape, pack_step, step_inputs
from vl2.engine.engine import Engine
from vl2.engine.image_cache import TileCache
from vl2.engine.scheduler import Chunk
from vl2.engine.sequence import Sequence
from vl2.model.kv_pool import KVPool
from vl2.model.step import QueryRows, StepInputs
from vl2.model.vl2 import DeepseekVL2
from vl2.model.weights import load_weights
from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.rows import RowRounding
from vl2.processing.processor import Processor

PAGE_SIZE = 16
MAX_PREEMPTIONS = 12
"""Forced ones: an answer that is computed again token by token would never end."""


@functools.cache
def build_model(variant: str) -> DeepseekVL2:
    folder = load_variant(variant).folder
    model = DeepseekVL2(read_model_config(folder), 4096, dtype=torch.float32, device=device.DEVICE)
    load_weights(model, folder)
    return model


@functools.cache
def build_processor(variant: str) -> Processor:
    folder = load_variant(variant).folder
    return Processor(folder, read_model_config(folder), ProcessorConfig())


@functools.cache
def _prompt(variant: str, name: str) -> Prompt:
    return build_processor(variant).process(load_variant(variant).case(name).messages)


def case_prompt(case: GoldenCase) -> Prompt:
    return _prompt(case.variant, case.name)


def text_step(num_tokens: int, first_position: int = 0) -> StepInputs:
    """One sequence whose pages lie in order; positions may start anywhere, the context starts at the first row."""
    rows = torch.arange(num_tokens, device=device.DEVICE)
    tables = torch.arange(-(-num_tokens // PAGE_SIZE), dtype=torch.int32, device=device.DEVICE)[None]
    queries = QueryRows(None, AttentionBatch.of([ChunkShape(0, num_tokens, num_tokens)], tables))
    return StepInputs(
        token_ids=rows,
        positions=rows + first_position,
        kv_slots=rows,
        queries=queries,
        last_queries=queries,
        num_logits=num_tokens,
        image_rows=rows[:0],
        image_sources=rows[:0],
        rounding=RowRounding(),
    )


@dataclass(frozen=True)
class PromptRun:
    embeds: torch.Tensor  # [T, C]
    hidden: torch.Tensor  # [T, C], after the final norm


def run_prompt(model: DeepseekVL2, prompt: Prompt) -> PromptRun:
    """A whole prompt in one step."""
    sequence = Sequence(GenerateRequest("golden", prompt, SamplingParams(max_tokens=1, seed=0)), 0, 4096)
    length = len(prompt.token_ids)
    sequence.pages = list(range(-(-length // PAGE_SIZE)))
    cache = TileCache(max(1, len(prompt.tiles)))
    features = model.feature_table(cache.num_slots)
    if len(prompt.tiles):
        encoded = model.encode_tiles(torch.from_numpy(np.ascontiguousarray(prompt.tiles)).to(device.DEVICE))
        for index, span in enumerate(prompt.spans):
            tiles = range(span.first_tile, span.first_tile + span.num_tiles)
            slots = cache.acquire([prompt.tile_keys[tile] for tile in tiles])
            assert slots is not None
            sequence.tile_slots[index] = slots
            features[:-2].unflatten(0, (cache.num_slots, -1))[slots] = encoded[list(tiles)]
    shape = BatchShape(
        PAGE_SIZE, len(sequence.pages), RowRounding(), model.config.tile_geometry, torch.device(device.DEVICE)
    )
    step = step_inputs(pack_step([Chunk.of(sequence, 0, length)], shape), shape)
    step = replace(step, last_queries=step.queries)  # hidden states of all tokens
    pool = KVPool(model.config.language, len(sequence.pages), PAGE_SIZE, dtype=torch.float32, device=device.DEVICE)
    embeds = model.embed(step, features)
    return PromptRun(embeds, model.decoder(embeds, step, pool))


def greedy(engine: Engine, prompts: dict[str, Prompt], preempt_every: int = 0, **params) -> dict[str, list]:
    """Answers by name as (token id, logprobs), all queued at once; every so many steps one is preempted by force."""
    settings = {"max_tokens": 16, "seed": 0, "ignore_eos": True, **params}
    for name, prompt in prompts.items():
        engine.add(GenerateRequest(name, prompt, SamplingParams(**settings)))
    answers: dict[str, list] = {name: [] for name in prompts}
    for event in drain(engine, preempt_every):
        assert event.error is None, event.error
        answers[event.request_id].append((event.token_id, event.logprobs))
    return answers


def drain(engine: Engine, preempt_every: int = 0) -> Iterator[TokenEvent]:
    """Events until nothing is left to do."""
    steps = 0
    while engine.has_work:
        steps += 1
        is_due = preempt_every and steps % preempt_every == 0 and engine.scheduler.counts.preemptions < MAX_PREEMPTIONS
        if is_due and engine.scheduler.running:
            engine.scheduler.preempt(engine.scheduler.running[0])
        yield from engine.step()


def build_engine(variant: str, **changes) -> Engine:
    settings = {
        "device": device.DEVICE,
        "dtype": "float32",
        "threads": 1,  # tests often share their cores
        "kv_cache_tokens": 16384,
        "image_cache_tiles": 64,
        **changes,
    }
    return Engine(load_variant(variant).folder, EngineConfig(**settings))
