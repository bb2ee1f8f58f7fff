"""Runs a step on the device: encode new tiles, one pass of the decoder, sample."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from vl2.checkpoint.fingerprint import fingerprint_weights
from vl2.checkpoint.folder import read_model_config
from vl2.core.config import EngineConfig
from vl2.core.errors import SetupError
from vl2.core.quantization_default import with_quantization
from vl2.core.stats import DeviceMemory, ModelInfo
from vl2.engine.batch import BatchShape, pack_step, sampling_inputs, sampling_rows, step_inputs
from vl2.engine.decode_graphs import DecodeGraphs
from vl2.engine.device import choose_device, choose_dtype, choose_kv_dtype, device_memory, gpu_uuid
from vl2.engine.device_rows import DeviceRows
from vl2.engine.flying import FlyingStep
from vl2.engine.grammar import late_chunks
from vl2.engine.huge_pages import collapse_pages
from vl2.engine.memory import measure_workspace, num_kv_pages
from vl2.engine.native_steps import choose_native_steps
from vl2.engine.pending import FinishedStep, PendingStep
from vl2.engine.picture_rows import max_span_tiles, tile_pixels
from vl2.engine.prompt_graphs import PromptGraphs
from vl2.engine.receipt import system_fingerprint
from vl2.engine.sampler import choose
from vl2.engine.scheduler import Chunk, StepBatch, StepOutput, TileJob
from vl2.engine.step_runner import Progress
from vl2.engine.threads import choose_num_threads, threads_for_step
from vl2.engine.vision_clock import VisionClock
from vl2.engine.vision_graphs import VisionGraphs
from vl2.model.kv_pool import KVPool
from vl2.model.packing import multiplies_natively, pack_weights
from vl2.model.vl2 import DeepseekVL2
from vl2.model.weights import draw_weights, load_weights
from vl2.ops.rows import RowRounding, find_row_multiple

log = logging.getLogger(__name__)

SIZES_PER_OCTAVE = 8


class Runner:
    """Owns everything that lies on the device: weights, KV pool, feature table."""

    def __init__(self, folder: Path, config: EngineConfig, on_progress: Progress | None = None) -> None:
        started_s = time.monotonic()
        self.device = choose_device(config.device, config.replicas, config.replica_idx)
        model_config = with_quantization(read_model_config(folder), config.quantization)
        self.config, self.model_config = config, model_config
        self.dtype = choose_dtype(config.dtype, self.device)
        if self.device.type == "cpu":
            self.num_threads = choose_num_threads(config.threads, config.replicas)
            torch.set_num_threads(self.num_threads)
        else:
            torch.cuda.set_device(self.device)
        self.max_context_tokens = config.max_context_tokens or model_config.language.max_position_embeddings
        wanted, is_quantized = config.deterministic, model_config.quantization is not None
        self.is_deterministic = self.device.type == "cpu" and not is_quantized if wanted is None else wanted
        self.model = DeepseekVL2(
            model_config,
            self.max_context_tokens,
            dtype=self.dtype,
            device=self.device,
            is_deterministic=self.is_deterministic,
        )
        if config.random_weights:
            draw_weights(self.model)
        else:
            load_weights(self.model, folder, on_progress)
        self.num_parameters = self.model.num_parameters  # packed, they may not be told any more
        if self.device.type == "cpu":
            pack_weights(self.model)
            collapse_pages()  # before the KV cache, which is resident only where it is used
        self.weights_bytes = sum(parameter.nbytes for parameter in self.model.parameters())
        self.num_tile_slots = max(config.image_cache_tiles, max_span_tiles(model_config))
        self.features = self.model.feature_table(self.num_tile_slots)
        workspace = measure_workspace(self.model, config) if self.device.type == "cuda" else 0
        kv_dtype = choose_kv_dtype(config.kv_dtype, self.dtype, self.device)
        num_pages = num_kv_pages(config, model_config.language, kv_dtype, self.device, workspace)
        page_size = config.page_size_tokens
        self.pool = KVPool(model_config.language, num_pages, page_size, dtype=kv_dtype, device=self.device)
        row_multiple = self._choose_row_multiple() if self.is_deterministic else 1
        is_torchs = self.device.type == "cpu" and not multiplies_natively(self.model.decoder)
        is_compiled_by_size = is_torchs and self.dtype != torch.float32
        rounding = RowRounding(
            row_multiple, SIZES_PER_OCTAVE if is_compiled_by_size else None, is_exact=self.is_deterministic
        )
        self.model.set_rounding(rounding)
        self.shape = BatchShape(
            page_size=page_size,
            spare_page=num_pages,
            rounding=rounding,
            geometry=model_config.tile_geometry,
            device=self.device,
        )

        self.fingerprint = b"random weights" if config.random_weights else fingerprint_weights(folder)
        if is_quantized:
            self.fingerprint += f" {model_config.quantization}".encode()
        if kv_dtype != self.dtype:
            self.fingerprint += f" cache in {config.kv_dtype}".encode()
        is_gpu = self.device.type == "cuda"
        self.vision_clock = VisionClock((lambda: torch.cuda.Event(enable_timing=True)) if is_gpu else None)
        self.rows: DeviceRows | None = None
        self.decode_graphs: DecodeGraphs | None = None
        self.native_steps = choose_native_steps(self.model, self.pool, config.max_sequences, torch.get_num_threads())
        self.vision_graphs: VisionGraphs | None = None
        self.prompt_graphs: PromptGraphs | None = None
        if self.device.type == "cuda":
            max_pages = -(-self.max_context_tokens // page_size)
            self.rows = DeviceRows(config.max_sequences, max_pages, self.device)
            self._capture_graphs()
        self._log_what_is_loaded(time.monotonic() - started_s)

    def _log_what_is_loaded(self, seconds: float) -> None:
        info = self.info
        log.info(
            "model loaded in %.1f s: %.4g M parameters in %s on %s with %d threads, KV cache of %d tokens (%.0f MiB)",
            seconds,
            info.num_parameters / 1e6,
            info.dtype,
            info.device,
            torch.get_num_threads(),
            info.num_pages * info.page_size_tokens,
            sum(layer.nbytes for layer in self.pool.layers) / 2**20,
        )

    @property
    def overlaps(self) -> bool:
        """Whether `launch` returns before the step's tokens are there."""
        return self.rows is not None

    @property
    def replays(self) -> bool:
        """Whether generated tokens are computed otherwise than prompts, and that must not show."""
        return self.is_deterministic and (self.device.type == "cuda" or self.native_steps is not None)

    @property
    def step_sizes(self) -> list[int]:
        """Numbers of tokens that a step with prompts is filled up to."""
        return self.prompt_graphs.sizes if self.prompt_graphs is not None else []

    def memory(self) -> DeviceMemory | None:
        return device_memory(self.device)

    def is_usable(self) -> bool:
        """A GPU that met a bad address or a failed assertion refuses all that this process asks for from then on."""
        if self.device.type == "cuda":
            try:
                torch.cuda.synchronize(self.device)
            except RuntimeError:
                return False
        return True

    @property
    def tile_bytes(self) -> int:
        """Of one encoded tile in the feature table."""
        return self.model_config.tile_geometry.tokens_per_tile * self.features[0].nbytes

    @torch.inference_mode()
    def _capture_graphs(self) -> None:
        assert self.rows is not None
        rounding = self.shape.rounding
        self.decode_graphs = DecodeGraphs(self.model, self.pool, self.rows, self.config.max_sequences, rounding)
        self.vision_graphs = VisionGraphs(self.model, self.features, self.config.max_step_tiles, rounding.is_exact)
        self.prompt_graphs = PromptGraphs(
            self.model,
            self.features,
            self.pool,
            self.rows,
            max_sequences=self.config.max_sequences,
            max_tokens=self.config.max_step_tokens,
            rounding=rounding,
        )

    @torch.inference_mode()
    def launch(self, batch: StepBatch) -> PendingStep:
        """Send a step to the device; on a CPU it is done when this returns."""
        if self.device.type == "cpu":
            num_tokens = sum(chunk.length for chunk in batch.chunks)
            torch.set_num_threads(
                threads_for_step(num_tokens, len(batch.tile_jobs), self.weights_bytes, self.num_threads)
            )
        began = torch.cuda.Event(enable_timing=True) if self.device.type == "cuda" else None
        if began is not None:
            began.record()
        if batch.tile_jobs:
            with self.vision_clock.lap(batch.tile_jobs):
                self._encode(batch.tile_jobs)
        if not batch.chunks:
            nothing = torch.empty(0, dtype=torch.int64, device=self.device)
            return FlyingStep(nothing, began) if self.overlaps else FinishedStep(StepOutput([], []))
        logits, tokens = self._run(batch)
        if tokens is not None:
            return FlyingStep(tokens, began)
        return self._sample(logits, batch) if len(logits) else FinishedStep(StepOutput([], []))

    def _run(self, batch: StepBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits [L, V] of the sequences whose next token is wanted, and those tokens if they were drawn with them."""
        num_natively = batch.num_leading_decodes if self.native_steps is not None else 0
        if 0 < num_natively < len(batch.chunks):
            parts = (batch.chunks[:num_natively], batch.chunks[num_natively:])
            return torch.cat([self._run(StepBatch(chunks, []))[0] for chunks in parts]), None
        if batch.is_decode and (decoded := self._decode(batch.chunks)) is not None:
            logits, drawn = decoded
            if len(batch.sampled) < len(batch.chunks):  # others are generated again, after a preemption
                wanted = [row for row, chunk in enumerate(batch.chunks) if chunk.is_last]
                logits, drawn = logits[wanted], drawn[wanted] if drawn is not None else None
            return logits, drawn if batch.needs_only_draws else None
        step = pack_step(batch.chunks, self.shape)
        ran = self.prompt_graphs.run(batch, step) if self.prompt_graphs is not None else None
        if ran is not None:
            logits, tokens = ran
            return logits, tokens if batch.needs_only_draws else None
        logits = self.model(step_inputs(step, self.shape, self.rows), self.features, self.pool)
        if self.rows is None or not batch.needs_only_draws:
            return logits, None
        sequences = [chunk.sequence for chunk in batch.sampled]
        if not sequences:
            return logits, torch.empty(0, dtype=torch.int64, device=self.device)
        tokens = self.model.ops.sample(logits, sampling_rows(sequences, self.device))
        self.rows.keep_tokens(sequences, tokens)
        return logits, tokens

    def _decode(self, chunks: list[Chunk]) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Logits of one token of each sequence, and tokens drawn with them; None: it is a step as any other."""
        if self.decode_graphs is not None:
            return self.decode_graphs.run(chunks)
        return None if self.native_steps is None else (self.native_steps.run(chunks), None)

    def _sample(self, logits: torch.Tensor, batch: StepBatch) -> PendingStep:
        """Of the rows that are ready to be sampled."""
        late: list[Chunk] = []
        if any(chunk.sequence.constraint is not None for chunk in batch.sampled):
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # until then it costs nothing to wait for masks
            late = late_chunks(batch)
        ready = [row for row, chunk in enumerate(batch.sampled) if chunk not in late]
        if not ready:
            return FinishedStep(StepOutput([], []), late)
        rest = batch.without_last_token(late) if late else batch
        output = choose(self.model.ops, logits[ready] if late else logits, sampling_inputs(rest, self.device))
        if self.rows is not None:
            sequences = [chunk.sequence for chunk in rest.sampled]
            self.rows.keep_tokens(sequences, torch.tensor(output.token_ids, device=self.device))
        return FinishedStep(output, late)

    def _encode(self, jobs: list[TileJob]) -> None:
        """Fill feature slots. Out of memory, half as many tiles are encoded at a time: no request fails by it."""
        tiles, slots = tile_pixels(jobs), [job.slot for job in jobs]
        if self.vision_graphs is not None:
            self.vision_graphs.encode(tiles, slots)
            return
        try:
            encoded = self.model.encode_tiles(torch.from_numpy(tiles).to(self.device))
        except torch.OutOfMemoryError:
            if len(jobs) == 1:
                raise
            encoded = None
        if encoded is None:  # outside the handler, which would keep the failed attempt's tensors alive
            log.warning("out of memory with %d tiles at once; trying half", len(jobs))
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            half = len(jobs) // 2
            self._encode(jobs[:half])
            self._encode(jobs[half:])
            return
        self.features[:-2].unflatten(0, (self.num_tile_slots, -1))[torch.tensor(slots, device=self.device)] = encoded

    def _choose_row_multiple(self) -> int:
        """What this processor's GEMMs need for a row's bits not to depend on the batch; on a GPU that is a matter of
        the kernels (ops/exact_backend.py).

        Raises: SetupError when that cannot be had.
        """
        if self.device.type == "cuda":
            if self.model_config.quantization is not None:
                raise SetupError("--deterministic on a GPU needs weights of 16 or 32 bits; use --quantization auto")
            return 1
        multiple = find_row_multiple(self.model.gemm_shapes(), frozenset((self.dtype, torch.float32)))
        if multiple is None:
            raise SetupError(
                f"--deterministic is not available on {self.device} in {self.dtype}: its matrix products give a row "
                f"other bits in other batches; use --no-deterministic"
            )
        log.info("deterministic: rows are computed in multiples of %d", multiple)
        return multiple

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            max_context_tokens=self.max_context_tokens,
            max_prompt_tiles=self.num_tile_slots,
            vocab_size=self.model_config.language.vocab_size,
            device=torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            dtype=str(self.dtype).removeprefix("torch."),
            num_parameters=self.num_parameters,
            weights_bytes=self.weights_bytes,
            num_pages=self.pool.num_pages,
            page_size_tokens=self.pool.page_size,
            fingerprint=system_fingerprint(
                self.fingerprint,
                self.device,
                self.dtype,
                self.model.ops.NAME + (f" and {self.native_steps.variant}" if self.native_steps is not None else ""),
                self.shape.rounding.multiple,
                self.is_deterministic,
            ),
            gpu_uuid=gpu_uuid(self.device),
        )
