"""A checkpoint in 16 bits → one in 4 or 8: layer by layer, each loaded, quantised, written and forgotten."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from vl2.checkpoint.fingerprint import fingerprint_weights
from vl2.checkpoint.folder import BlockReader, TensorInfo, list_tensors, read_model_config
from vl2.core.config import ProcessorConfig
from vl2.core.errors import SetupError
from vl2.core.model_config import ModelConfig
from vl2.core.quantization import Quantization, StoredScheme
from vl2.core.quantization_default import default_quantization
from vl2.core.tiling import image_layout
from vl2.model.decoder import DecoderLayer
from vl2.model.kv_pool import KVPool
from vl2.model.stored import TORCH_DTYPES, WeightReader, group_tensors
from vl2.model.vl2 import DeepseekVL2
from vl2.model.weights import ROWS_AT_ONCE, decoder_layer, destinations, fill
from vl2.ops.backend import choose_backend
from vl2.ops.quantized_weight.codes import round_to_nearest
from vl2.ops.rope.table import rope_table
from vl2.processing.processor import Processor
from vl2.quant.calibration import Sample, digest, read_calibration
from vl2.quant.layer import PAGE_SIZE, Inputs, Method, QuantizedLayer, packed_tensors, quantize_layer, run_layer
from vl2.quant.output import OutputFolder

log = logging.getLogger(__name__)

LAYERS = "language.model.layers."
TILES_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked for. `group_size` None: one scale for all inputs of an output."""

    method: str  # gptq or rtn
    bits: int
    group_size: int | None
    head_bits: int
    calibration: Path | None  # None: rtn alone
    max_samples: int
    expert_floor: int
    device: torch.device
    dtype: torch.dtype  # that the calibration computes in


class Progress(Protocol):
    """Told how many linears there are, of which a former run did some, and of each when it is done."""

    def start(self, num_linears: int, num_done: int) -> None: ...

    def advance(self, num_linears: int) -> None: ...


def quantize(source: Path, name: str, out: Path, settings: Settings, progress: Progress) -> list[str]:
    """Write the quantised checkpoint to `out`, or go on with it. Returns what of the calibration was skipped.

    Raises: SetupError, CheckpointError.
    """
    config = read_model_config(source)
    if config.quantization is not None:
        raise SetupError(f"{source} is quantised already; name the checkpoint in 16 bits that it was made of")
    plan = default_quantization(
        config.language, StoredScheme(settings.bits, settings.group_size), head_bits=settings.head_bits
    )
    samples, skipped = _read_samples(source, config, settings)
    job = _Job(source, config, plan, samples, settings)
    described = {
        "source": fingerprint_weights(source).hex(),
        "method": settings.method,
        "bits": settings.bits,
        "group": settings.group_size or "none",
        "head_bits": settings.head_bits,
        "calibration": digest(samples),
        "expert_floor": settings.expert_floor,
        "computed_in": str(settings.dtype).removeprefix("torch."),
    }
    job.run(OutputFolder(out, described, config.language.layers + 1), name, progress)
    return skipped


def _read_samples(source: Path, config: ModelConfig, settings: Settings) -> tuple[list[Sample], list[str]]:
    if settings.method == "rtn":
        return [], []
    if settings.calibration is None:
        raise SetupError(
            "--method gptq needs --calibration: a folder of pictures of the kind that the model will see, or a JSONL "
            "file of questions and answers; --method rtn needs none"
        )
    processor = Processor(source, config, ProcessorConfig())
    max_tokens = config.language.max_position_embeddings
    return read_calibration(settings.calibration, processor, max_samples=settings.max_samples, max_tokens=max_tokens)


class _Job:
    def __init__(
        self, source: Path, config: ModelConfig, plan: Quantization, samples: list[Sample], settings: Settings
    ) -> None:
        self.config, self.plan, self.samples, self.settings = config, plan, samples, settings
        self.source = source
        self.infos = list_tensors(source)
        self.ops = choose_backend(settings.device)

    def run(self, out: OutputFolder, name: str, progress: Progress) -> None:
        num_layers = self.config.language.layers
        linears = [self._num_linears(layer) for layer in range(num_layers)]
        finished = [out.has(layer) for layer in range(num_layers)]
        progress.start(sum(linears), sum(n for n, is_done in zip(linears, finished, strict=True) if is_done))
        is_calibrated = self.settings.method == "gptq"
        inputs = self._embed() if is_calibrated and not all(finished) else self._no_inputs()
        with BlockReader() as blocks:
            for number in range(num_layers):
                if not finished[number]:
                    layer = self._load_layer(number, self._layer_infos(number), WeightReader(blocks, None))
                    quantized = self._quantize(layer, number, inputs, progress)
                    out.write(number, *self._shard(number, quantized, blocks))
                elif not all(finished) and is_calibrated:
                    layer = self._load_layer(number, out.tensors(number), WeightReader(blocks, self.plan))
                    run_layer(layer, inputs)
            if not out.has(num_layers):
                out.write(num_layers, self._rest(blocks), {})
        out.finish(self.source, name, self.plan)

    def _quantize(self, layer: DecoderLayer, number: int, inputs: Inputs, progress: Progress) -> QuantizedLayer:
        first = next(info for info in self._layer_infos(number) if info.name.endswith("layernorm.weight"))
        method = Method(self.settings.method, self.plan, self.settings.expert_floor, TORCH_DTYPES[first.dtype])
        return quantize_layer(layer, f"{LAYERS}{number}", inputs, method, lambda: progress.advance(1))

    def _shard(
        self, number: int, quantized: QuantizedLayer, blocks: BlockReader
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The layer's tensors, and what is told of it."""
        reader = WeightReader(blocks, None)
        kept = [info for info in self._layer_infos(number) if info.name not in quantized.replaced]
        tensors = quantized.tensors | {info.name: reader.tensor(info) for info in kept}
        report = {
            "layer": number,
            "tokens_per_expert": quantized.tokens_per_expert,
            "rounded_to_nearest": quantized.rounded_experts,
        }
        return tensors, report

    def _rest(self, blocks: BlockReader) -> dict[str, torch.Tensor]:
        """All that is in no layer."""
        reader = WeightReader(blocks, None)
        rest = {name: reader.tensor(info) for name, info in self.infos.items() if not name.startswith(LAYERS)}
        head = "language.lm_head"
        scheme = self.plan.scheme_of(head)
        if scheme is not None:
            weight = rest.pop(f"{head}.weight")
            codes, scales = zip(
                *(round_to_nearest(rows, scheme, weight.dtype) for rows in weight.split(ROWS_AT_ONCE)), strict=True
            )
            rest |= packed_tensors(head, torch.cat(codes), torch.cat(scales), scheme.bits)
        return rest

    def _layer_infos(self, number: int) -> list[TensorInfo]:
        return [info for name, info in self.infos.items() if name.startswith(f"{LAYERS}{number}.")]

    def _num_linears(self, number: int) -> int:
        """Those that are worked on: `kv_b_proj` stays as it is."""
        names = [info.name for info in self._layer_infos(number) if not info.name.endswith("kv_b_proj.weight")]
        return sum(name.endswith(("proj.weight", "_with_mqa.weight")) for name in names)

    def _load_layer(self, number: int, infos: Iterable[TensorInfo], reader: WeightReader) -> DecoderLayer:
        """In 16 bits, whatever it is read from."""
        dtype, device = self.settings.dtype, self.settings.device
        layer = DecoderLayer(self.config.language, number, self.ops, dtype=dtype, device=device)
        targets = dict(decoder_layer(f"{LAYERS}{number}", layer))
        for stored in group_tensors(infos).values():
            fill(reader, stored, targets[stored.name], self.settings.dtype)
        return layer

    @torch.no_grad()
    def _embed(self) -> Inputs:
        """Embeddings of all samples; the vision tower is here only as long as it takes."""
        model = DeepseekVL2(
            replace(self.config, language=replace(self.config.language, layers=0)),
            1,
            dtype=self.settings.dtype,
            device=self.settings.device,
        )
        targets = dict(destinations(model))
        with BlockReader() as blocks:
            reader = WeightReader(blocks, None)
            for stored in group_tensors(self.infos.values()).values():
                if stored.name in targets:
                    fill(reader, stored, targets[stored.name], self.settings.dtype)
        inputs = self._no_inputs()
        inputs.hidden = [embed_sample(model, sample) for sample in self.samples]
        inputs.weights = [sample.weights(self.settings.device) for sample in self.samples]
        return inputs

    def _no_inputs(self) -> Inputs:
        language, dtype, device = self.config.language, self.settings.dtype, self.settings.device
        longest = max((len(sample.prompt.token_ids) for sample in self.samples), default=1)
        rotated = language.mla.rope_dim if language.mla else language.head_dim
        rope = rope_table(rotated, longest, language.rope_theta, language.yarn, device)
        num_pages = -(-longest // PAGE_SIZE)
        pool = KVPool(replace(language, layers=1), num_pages, PAGE_SIZE, dtype=dtype, device=device)
        return Inputs([], [], rope, pool.layers[0])


def embed_sample(model: DeepseekVL2, sample: Sample) -> torch.Tensor:
    """[T, C]."""
    prompt, geometry = sample.prompt, model.config.tile_geometry
    embeds = model.decoder.embed_tokens[torch.tensor(prompt.token_ids, device=model.device)]
    if prompt.spans:
        features = model.feature_table(len(prompt.tiles))
        tiles = torch.from_numpy(np.array(prompt.tiles))  # a copy: they may be another process's, to read only
        encoded = [model.encode_tiles(part.to(model.device)) for part in tiles.split(TILES_AT_ONCE)]
        features[:-2] = torch.cat(encoded).flatten(0, 1)
        for span in prompt.spans:
            layout = torch.tensor(image_layout(span.tiles_wide, span.tiles_high, geometry), device=model.device).long()
            rows = torch.where(layout < 0, layout, layout + span.first_tile * geometry.tokens_per_tile)
            embeds[span.start : span.start + span.length] = features[rows]
    return embeds
