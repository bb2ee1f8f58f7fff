"""How many pages the KV pool gets: what weights and the largest step leave, measured once at the start."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from vl2.core.config import EngineConfig
from vl2.core.errors import SetupError
from vl2.core.gpu_memory import usable_bytes
from vl2.core.model_config import LanguageConfig
from vl2.engine.device import choose_kv_dtype
from vl2.engine.host_memory import available_host_bytes
from vl2.model.kv_pool import KVPool, kv_bytes_per_token
from vl2.model.step import QueryRows, StepInputs
from vl2.model.vl2 import DeepseekVL2
from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.rows import RowRounding
from vl2.ops.sampling.rows import SamplingRows

CPU_MEMORY_SHARE = 0.25
"""Of the memory that is available when the engine starts; pages are only touched as they are used."""


def measure_workspace(model: DeepseekVL2, config: EngineConfig) -> int:
    """Bytes that steps take beside weights and cache, by running the largest of each kind once.

    The largest tile batch, the largest step and the sampling of all rows are added up: two of them keep their memory in
    CUDA graphs of their own.
    """
    device, geometry = model.device, model.config.tile_geometry
    tiles = torch.zeros(config.max_step_tiles, geometry.side, geometry.side, 3, dtype=torch.uint8, device=device)
    step = _largest_step(model, config)
    num_pages = step.queries.sequences.block_tables.shape[1]
    kv_dtype = choose_kv_dtype(config.kv_dtype, model.dtype, device)
    pool = KVPool(model.config.language, num_pages, config.page_size_tokens, dtype=kv_dtype, device=device)
    table = model.feature_table(1)
    hidden = torch.zeros(config.max_sequences, model.config.language.hidden_size, dtype=model.dtype, device=device)
    rows = (torch.ones(config.max_sequences, device=device), torch.zeros(len(hidden), dtype=torch.int32, device=device))
    sampling = SamplingRows(rows[0], rows[1], rows[0], 0 * rows[0], 0 * rows[0])

    def sample_all() -> None:
        model.ops.sample(model.decoder.logits(hidden), sampling)

    parts = (lambda: model.encode_tiles(tiles), lambda: model(step, table, pool), sample_all)
    return sum(_peak_bytes(part, device) for part in parts)


@torch.inference_mode()
def _peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most that `run` allocates at a time."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    return peak


def _largest_step(model: DeepseekVL2, config: EngineConfig) -> StepInputs:
    """As many prompt tokens as a step may hold, at the end of the longest contexts, and logits for all sequences."""
    context = config.max_context_tokens or model.config.language.max_position_embeddings
    lengths = [min(context, config.max_step_tokens - done) for done in range(0, config.max_step_tokens, context)]
    positions = torch.cat([torch.arange(context - length, context, device=model.device) for length in lengths])
    starts = itertools.accumulate(lengths, initial=0)
    chunks = [ChunkShape(start, length, context) for start, length in zip(starts, lengths, strict=False)]
    pages = torch.arange(-(-context // config.page_size_tokens), dtype=torch.int32, device=model.device)
    tables = pages.expand(len(chunks), -1).contiguous()
    nothing = torch.empty(0, dtype=torch.int64, device=model.device)
    return StepInputs(
        token_ids=torch.zeros_like(positions),
        positions=positions,
        kv_slots=positions,
        queries=QueryRows(None, AttentionBatch.of(chunks, tables)),
        last_queries=QueryRows(torch.zeros_like(positions[: config.max_sequences]), AttentionBatch.of([], tables[:0])),
        num_logits=config.max_sequences,
        image_rows=nothing,
        image_sources=nothing,
        rounding=RowRounding(),
    )


def num_kv_pages(
    config: EngineConfig, language: LanguageConfig, dtype: torch.dtype, device: torch.device, workspace_bytes: int
) -> int:
    """Pages of the pool: `kv_cache_tokens` where given, else what memory allows; no more than all sequences can use.

    dtype            of the cache
    workspace_bytes  what the largest step needs beside the weights, which are loaded by now

    Raises: SetupError when not even one longest sequence fits.
    """
    context = config.max_context_tokens or language.max_position_embeddings
    per_page = kv_bytes_per_token(language, dtype) * config.page_size_tokens
    needed = -(-context // config.page_size_tokens)
    if config.kv_cache_tokens is not None:
        num_pages, source = config.kv_cache_tokens // config.page_size_tokens, "kv_cache_tokens"
    else:
        num_pages = min(_free_bytes(config, device, workspace_bytes) // per_page, needed * config.max_sequences)
        source = "free memory"
    if num_pages < needed:
        raise SetupError(
            f"the KV cache has room for {max(0, num_pages) * config.page_size_tokens} tokens by {source}, but one "
            f"sequence may take {context} ({needed * per_page / 2**20:.0f} MiB): lower --max-context-tokens, "
            f"raise --kv-cache-tokens, or free memory on {device}"
        )
    return num_pages


def _free_bytes(config: EngineConfig, device: torch.device, workspace_bytes: int) -> int:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free - (total - usable_bytes(total, config.kv_memory_share)) - workspace_bytes
    return int(available_host_bytes() * CPU_MEMORY_SHARE / config.replicas)
