"""Runs a step on ONNX Runtime: encode new tiles, the decoder for one sequence after the other, sample. No torch.

Scheduling, caches, grammars and the server are those of the torch engine, so that the API is the same.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import time
from pathlib import Path

import numpy as np
import onnxruntime

from vl2 import __version__
from vl2.checkpoint.folder import read_model_config
from vl2.core.config import EngineConfig
from vl2.core.cpu import cpu_words
from vl2.core.errors import SetupError
from vl2.core.model_config import LanguageConfig
from vl2.core.stats import DeviceMemory, ModelInfo
from vl2.core.tiling import NEWLINE_ROW, SEPARATOR_ROW
from vl2.core.types import TokenLogprobs
from vl2.edge.bundle import is_bundle, read_manifest
from vl2.edge.cache_layout import cache_width
from vl2.edge.home import bundle_of
from vl2.edge.network import Network
from vl2.engine.grammar import late_chunks
from vl2.engine.host_memory import available_host_bytes
from vl2.engine.onnx_sampler import choose
from vl2.engine.pages import cache_slots
from vl2.engine.pending import FinishedStep, PendingStep
from vl2.engine.picture_rows import image_tokens, max_span_tiles, tile_pixels
from vl2.engine.scheduler import Chunk, StepBatch, StepOutput, TileJob
from vl2.engine.step_runner import Progress
from vl2.engine.threads import choose_num_threads
from vl2.engine.vision_clock import VisionClock

log = logging.getLogger(__name__)

PRECISIONS = {"auto": "fp32", "float32": "fp32", "float16": "fp16"}
DTYPES = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
CONTEXTS_KEPT = 4
"""Full contexts that the cache holds unless told otherwise, where memory allows."""
MEMORY_SHARE = 0.25
"""Of the memory that is available at the start, for the cache."""


class OnnxRunner:
    """Owns the network, and the features of encoded tiles."""

    step_sizes: tuple[int, ...] = ()
    replays = False

    def __init__(self, folder: Path, config: EngineConfig, on_progress: Progress | None = None) -> None:
        """`folder`: an exported model, or a checkpoint, which is exported first. Raises: SetupError."""
        started_s = time.monotonic()
        self.config = config
        self.model_config = read_model_config(folder)
        language = self.model_config.language
        self.max_context_tokens = config.max_context_tokens or language.max_position_embeddings
        num_pages = _num_pages(config, language, self.max_context_tokens)
        self.num_threads = choose_num_threads(config.threads, config.replicas)
        provider, precision = _provider(config), _precision(folder, config)
        self.network = Network(
            bundle_of(folder, precision, on_progress),
            num_slots=num_pages * config.page_size_tokens,
            provider=provider,
            threads=self.num_threads,
        )
        self.fingerprint = self.network.manifest.digest
        self.num_tile_slots = max(config.image_cache_tiles, max_span_tiles(self.model_config))
        tokens = self.model_config.tile_geometry.tokens_per_tile
        self._features = np.zeros((self.num_tile_slots * tokens, language.hidden_size), np.float32)
        self.vision_clock = VisionClock()
        self.info = ModelInfo(
            max_context_tokens=self.max_context_tokens,
            max_prompt_tiles=self.num_tile_slots,
            vocab_size=language.vocab_size,
            device=self.network.providers.name,
            dtype=DTYPES[self.network.manifest.precision],
            num_parameters=self.network.manifest.num_parameters,
            weights_bytes=self.network.weights_bytes,
            num_pages=num_pages,
            page_size_tokens=config.page_size_tokens,
            fingerprint=self._receipt(),
        )
        if self.info.dtype == "int8" and platform.machine() == "x86_64" and not has_vnni():
            log.warning("this processor lacks VNNI: int8 is slow here and sums may saturate; export to fp32 instead")
        log.info(
            "model loaded in %.1f s: ONNX Runtime %s, %s on %s with %d threads, KV cache of %d tokens (%.0f MiB)",
            time.monotonic() - started_s,
            onnxruntime.__version__,
            self.info.dtype,
            self.info.device,
            self.num_threads,
            self.network.num_slots,
            self.network.cache_bytes / 2**20,
        )

    def _receipt(self) -> str:
        parts = (self.fingerprint.hex(), __version__, onnxruntime.__version__, self.network.providers.name)
        return f"vl2-onnx-{hashlib.blake2b(' '.join(parts).encode(), digest_size=8).hexdigest()}"

    @property
    def overlaps(self) -> bool:
        return False

    @property
    def tile_bytes(self) -> int:
        return self._features.nbytes // self.num_tile_slots

    def memory(self) -> DeviceMemory | None:
        return None

    def is_usable(self) -> bool:
        return True

    def launch(self, batch: StepBatch) -> PendingStep:
        """The step is done when this returns."""
        if batch.tile_jobs:
            with self.vision_clock.lap(batch.tile_jobs):
                self._encode(batch.tile_jobs)
        logits = [(self._compute(chunk), chunk) for chunk in batch.chunks]
        late = late_chunks(batch)
        chosen: list[tuple[int, TokenLogprobs | None]] = [
            choose(row, chunk.sequence) for row, chunk in logits if chunk.is_last and chunk not in late
        ]
        return FinishedStep(StepOutput([token for token, _ in chosen], [logprobs for _, logprobs in chosen]), late)

    def _encode(self, jobs: list[TileJob]) -> None:
        slots = self._features.reshape(self.num_tile_slots, -1, self._features.shape[1])
        slots[[job.slot for job in jobs]] = self.network.encode_tiles(tile_pixels(jobs))

    def _compute(self, chunk: Chunk) -> np.ndarray:
        """Logits [V] of the chunk's last token, wanted or not: without any row ONNX Runtime 1.23 divides by zero."""
        context, page_size = np.arange(chunk.end), self.config.page_size_tokens
        context_slots = cache_slots(np.asarray(chunk.sequence.pages)[context // page_size], context, page_size)
        return self.network.step(
            self._embeds(chunk),
            context[chunk.start :],
            context_slots[chunk.start :],
            context_slots,
            np.asarray([chunk.length - 1]),
        )[0]

    def _embeds(self, chunk: Chunk) -> np.ndarray:
        """[T, C]: of text from the table, of pictures from their features."""
        ids = np.asarray(chunk.sequence.token_ids[chunk.start : chunk.end])
        vocab_size = self.model_config.language.vocab_size
        pictures = [
            (positions - chunk.start, sources)
            for positions, sources in image_tokens(chunk, self.model_config.tile_geometry)
        ]
        for rows, sources in pictures:
            ids[rows[sources == NEWLINE_ROW]] = vocab_size
            ids[rows[sources == SEPARATOR_ROW]] = vocab_size + 1
        embeds = self.network.embed(ids)
        for rows, sources in pictures:
            embeds[rows[sources >= 0]] = self._features[sources[sources >= 0]]
        return embeds


def has_vnni() -> bool:
    """Whether the processor adds up products of bytes in 32 bits. Older ones do so in 16, which overflow."""
    return bool(cpu_words() & {"avx512_vnni", "avx_vnni", "amx_int8"})


def _precision(folder: Path, config: EngineConfig) -> str:
    """Raises: SetupError for a format that an exported model does not have, or that nothing here computes in."""
    wanted = PRECISIONS.get(config.dtype)
    if wanted is None:
        raise SetupError(f"--dtype {config.dtype} is not available with --engine onnx; use float32 or float16")
    if config.kv_dtype != "auto":
        raise SetupError(f"--kv-dtype {config.kv_dtype} is not available with --engine onnx; leave it out")
    if config.quantization in ("int4", "fp8"):
        raise SetupError(f"--quantization {config.quantization} is not available with --engine onnx; use int8")
    if config.quantization == "int8":
        wanted = "int8"
    if not is_bundle(folder):
        return wanted
    precision = read_manifest(folder).precision
    if precision != wanted and (config.dtype, config.quantization) != ("auto", "auto"):
        raise SetupError(f"{folder} was exported to {precision}; leave --dtype and --quantization out")
    return precision


def _provider(config: EngineConfig) -> str:
    """Raises: SetupError for options that ask for what ONNX Runtime does not do."""
    if config.deterministic or config.random_weights:
        flag = "--deterministic" if config.deterministic else "--random-weights"
        raise SetupError(f"{flag} is not available with --engine onnx; use --engine torch")
    if config.device == "cpu":
        if config.provider not in ("auto", "cpu"):
            raise SetupError(f"--device cpu and --provider {config.provider} contradict each other; leave one out")
        return "cpu"
    return "cuda" if config.device == "cuda" and config.provider == "auto" else config.provider


def _num_pages(config: EngineConfig, language: LanguageConfig, context: int) -> int:
    """Raises: SetupError when not even one full context fits."""
    page = config.page_size_tokens
    needed = -(-context // page)
    if config.kv_cache_tokens is not None:
        num_pages, source = config.kv_cache_tokens // page, "--kv-cache-tokens"
    else:
        page_bytes = cache_width(language) * np.dtype(np.float32).itemsize * language.layers * page
        affordable = int(available_host_bytes() * MEMORY_SHARE / config.replicas) // page_bytes
        num_pages, source = min(affordable, needed * CONTEXTS_KEPT), "free memory"
    if num_pages < needed:
        raise SetupError(
            f"the KV cache has room for {num_pages * page} tokens by {source}, but one sequence may take {context}: "
            f"lower --max-context-tokens, or raise --kv-cache-tokens"
        )
    return num_pages
