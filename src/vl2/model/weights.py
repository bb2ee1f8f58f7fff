"""Official tensor names → our parameters, and a load that streams tensor by tensor.

The only file with the official checkpoint's spellings. Fused weights (q|k|v, gate|up, all experts) are slices of one
parameter: each official tensor has exactly one destination, contiguous in memory. Where a parameter is quantised, its
destination is a `QuantizedPart`: codes from the checkpoint, or 16-bit weights that are rounded to nearest on the way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from vl2.checkpoint.folder import UNUSED_PREFIX, BlockReader, TensorInfo, list_tensors
from vl2.core.errors import CheckpointError
from vl2.core.quantization import Quantization
from vl2.model.attention import MHA, MLA
from vl2.model.decoder import DecoderLayer
from vl2.model.linear import LayerNorm, Linear, QuantizedLinear
from vl2.model.moe import MLP, MoE, QuantizedMoE
from vl2.model.stored import TORCH_DTYPES, StoredWeight, WeightReader, check_stored, group_tensors
from vl2.model.vision import VisionBlock
from vl2.model.vl2 import DeepseekVL2
from vl2.ops.quantized_weight.codes import dequantize_codes, round_to_nearest
from vl2.ops.quantized_weight.weight import QuantizedLayout, QuantizedWeight
from vl2.ops.saturate import to_dtype

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 8192
"""Of a matrix that is rounded to nearest: no float32 copy of a whole vocabulary is held."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows and inputs of an official linear, and the rows of a matrix of ours that hold them."""

    weight: QuantizedWeight
    first_row: int
    first_input: int


@dataclass(frozen=True, slots=True)
class QuantizedPart:
    """Where an official linear [N, K] lies in quantised parameters."""

    layout: QuantizedLayout
    shape: tuple[int, int]
    pieces: tuple[Piece, ...]

    def store(self, codes: torch.Tensor, scales: torch.Tensor, first_row: int = 0) -> None:
        """Codes [M, K] int8 and scales [M, G] of rows from `first_row` on."""
        for piece in self.pieces:
            start = max(first_row, piece.first_row)
            count = min(first_row + len(codes), piece.first_row + piece.weight.out_width) - start
            if count > 0:
                rows = slice(start - first_row, start - first_row + count)
                size = self.shape[1] // scales.shape[1]
                inputs = slice(piece.first_input, piece.first_input + piece.weight.in_width)
                groups = slice(inputs.start // size, max(1, inputs.stop // size))
                target = piece.weight.rows(start - piece.first_row, count)
                self.layout.store(target, codes[rows, inputs], scales[rows, groups])


Target = torch.Tensor | QuantizedPart
Destination = tuple[str, Target]


def load_weights(model: DeepseekVL2, folder: Path, on_progress: Callable[[int, int], None] | None = None) -> None:
    """Fill the model from a checkpoint folder. `on_progress(bytes done, bytes in all)` is called after each weight.

    Raises: CheckpointError naming the first missing, extra or misshapen tensor.
    """
    quantization = model.config.quantization
    tensors = (info for name, info in list_tensors(folder).items() if not name.startswith(UNUSED_PREFIX))
    found, targets = group_tensors(tensors), dict(destinations(model))
    _check_names(folder, found, targets, quantization)
    total = sum(stored.num_bytes for stored in found.values())
    done = num_widened = 0
    with BlockReader() as blocks:
        reader = WeightReader(blocks, quantization)
        for stored in sorted(found.values(), key=lambda stored: (stored.main.file, stored.main.start)):
            target = targets[stored.name]
            is_quantized = not stored.is_plain or reader.rounded_to(stored) is not None
            num_widened += is_quantized and not isinstance(target, QuantizedPart)
            fill(reader, stored, target, model.dtype)
            done += stored.num_bytes
            if on_progress is not None:
                on_progress(done, total)
    if num_widened:
        log.warning(
            "%d quantised weights are held in %s: %s has no such product", num_widened, model.dtype, model.ops.NAME
        )


def fill(reader: WeightReader, stored: StoredWeight, target: Target, dtype: torch.dtype) -> None:
    """`dtype`: of new scales, and of what is computed with them."""
    if isinstance(target, torch.Tensor):
        scheme = reader.rounded_to(stored)
        if scheme is not None:
            for first_row in range(0, len(target), ROWS_AT_ONCE):
                rows = target[first_row : first_row + ROWS_AT_ONCE]
                weight = reader.tensor(stored.main, first_row, len(rows))
                rows.copy_(dequantize_codes(*round_to_nearest(weight, scheme, dtype)))
        elif stored.is_plain:
            _copy(reader.reader, stored.main, target)
        else:
            target.copy_(to_dtype(reader.dense(stored), target.dtype))
        return
    device = target.pieces[0].weight.codes.device
    if stored.is_plain:
        for first_row in range(0, target.shape[0], ROWS_AT_ONCE):
            num_rows = min(ROWS_AT_ONCE, target.shape[0] - first_row)
            weight = reader.tensor(stored.main, first_row, num_rows).to(device)
            scheme = target.pieces[0].weight.scheme
            target.store(*round_to_nearest(weight, scheme, dtype), first_row)
    else:
        codes, scales = reader.codes(stored)
        scales = scales.to(device)
        target.store(codes.to(device), scales if codes.is_floating_point() else to_dtype(scales, dtype))


@torch.no_grad()
def draw_weights(model: DeepseekVL2, seed: int = 0) -> None:
    """Random weights for measuring: N(0, 0.02), norms 1, biases 0. Their routing spreads over the experts."""
    generator = torch.Generator(model.device).manual_seed(seed)
    layout = model.ops.quantized_layout
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            layout.draw(module.weight, 0.02, generator)
        elif isinstance(module, QuantizedMoE):
            layout.draw(module.experts.gate_up, 0.02, generator)
            layout.draw(module.experts.down, 0.02, generator)
    for name, parameter in model.named_parameters():
        if name.endswith(("codes", "scales")):
            continue
        if "norm" in name and name.endswith("weight"):
            parameter.fill_(1.0)
        elif parameter.dim() < 2:
            parameter.zero_()
        else:
            for part in parameter.split(1) if parameter.dim() == 3 else (parameter,):
                part.normal_(0.0, 0.02, generator=generator)


def _check_names(
    folder: Path, found: dict[str, StoredWeight], targets: dict[str, Target], quantization: Quantization | None
) -> None:
    missing = [name for name in targets if name not in found]
    extra = [name for name in found if name not in targets]
    for problem, names in (("lacks", missing), ("has unknown", extra)):
        if names:
            raise CheckpointError(
                f"{folder} {problem} {len(names)} tensors, first {names[0]}; "
                f"do config.json and the weights belong together?"
            )
    for name, target in targets.items():
        check_stored(found[name], tuple(target.shape), quantization)


def _copy(reader: BlockReader, info: TensorInfo, target: torch.Tensor) -> None:
    source_dtype = TORCH_DTYPES[info.dtype]
    flat = target.view(-1)
    for position, block in reader.blocks(info):
        values = torch.frombuffer(block, dtype=source_dtype)
        start = position // source_dtype.itemsize
        flat[start : start + len(values)] = to_dtype(values, target.dtype)


def destinations(model: DeepseekVL2) -> Iterator[Destination]:
    """(official name, the part of a parameter that it fills) for every tensor that the model uses."""
    vision = model.vision
    size = vision.config.patch_size
    yield "vision.patch_embed.proj.weight", vision.patch_embed.weight.unflatten(1, (3, size, size))  # a convolution's
    assert vision.patch_embed.bias is not None
    yield "vision.patch_embed.proj.bias", vision.patch_embed.bias
    yield "vision.pos_embed", vision.pos_embed.unsqueeze(0)
    for index, block in enumerate(vision.blocks):
        assert isinstance(block, VisionBlock)
        yield from _vision_block(f"vision.blocks.{index}", block)
    yield from _layer_norm("vision.norm", vision.norm)
    for index, layer in enumerate(model.projector.layers):
        assert isinstance(layer, Linear)
        yield from _linear(f"projector.layers.{2 * index}", layer)
    yield "image_newline", model.image_newline
    yield "view_seperator", model.view_separator  # the official spelling
    decoder = model.decoder
    yield "language.model.embed_tokens.weight", decoder.embed_tokens
    for index, layer in enumerate(decoder.layers):
        assert isinstance(layer, DecoderLayer)
        yield from decoder_layer(f"language.model.layers.{index}", layer)
    yield "language.model.norm.weight", decoder.norm.weight
    if isinstance(decoder.lm_head, QuantizedLinear):
        yield from _linear("language.lm_head", decoder.lm_head)
    else:
        yield "language.lm_head.weight", decoder.lm_head


def _linear(name: str, linear: Linear | QuantizedLinear) -> Iterator[Destination]:
    yield from _stacked(
        [name], [linear.weight.out_width if isinstance(linear, QuantizedLinear) else len(linear.weight)], linear
    )


def _stacked(names: list[str], sizes: list[int], linear: Linear | QuantizedLinear) -> Iterator[Destination]:
    """Several official linears that are one GEMM here, stacked along the output."""
    if isinstance(linear, QuantizedLinear):
        first = 0
        for name, size in zip(names, sizes, strict=True):
            yield f"{name}.weight", _quantized(linear.ops.quantized_layout, linear.weight.rows(first, size))
            first += size
    else:
        for name, weight in zip(names, linear.weight.split(sizes), strict=True):
            yield f"{name}.weight", weight
    if linear.bias is not None:
        for name, bias in zip(names, linear.bias.split(sizes), strict=True):
            yield f"{name}.bias", bias


def _layer_norm(name: str, norm: LayerNorm) -> Iterator[Destination]:
    yield f"{name}.weight", norm.weight
    yield f"{name}.bias", norm.bias


def _vision_block(name: str, block: VisionBlock) -> Iterator[Destination]:
    yield from _layer_norm(f"{name}.norm1", block.norm1)
    yield from _linear(f"{name}.attn.qkv", block.qkv)
    yield from _linear(f"{name}.attn.proj", block.proj)
    yield from _layer_norm(f"{name}.norm2", block.norm2)
    yield from _linear(f"{name}.mlp.fc1", block.fc1)
    yield from _linear(f"{name}.mlp.fc2", block.fc2)


def decoder_layer(name: str, layer: DecoderLayer) -> Iterator[Destination]:
    """`destinations` of one layer."""
    yield f"{name}.input_layernorm.weight", layer.attention_norm.weight
    yield f"{name}.post_attention_layernorm.weight", layer.mlp_norm.weight
    if isinstance(layer.attention, MLA):
        yield from _mla(f"{name}.self_attn", layer.attention)
    else:
        yield from _mha(f"{name}.self_attn", layer.attention)
    if isinstance(layer.mlp, MoE):
        yield from _moe(f"{name}.mlp", layer.mlp)
    else:
        yield from _mlp(f"{name}.mlp", layer.mlp)


def _mha(name: str, mha: MHA) -> Iterator[Destination]:
    q_width, kv_width = mha.heads * mha.head_dim, mha.kv_heads * mha.head_dim
    names = [f"{name}.{part}_proj" for part in "qkv"]
    yield from _stacked(names, [q_width, kv_width, kv_width], mha.qkv)
    yield from _linear(f"{name}.o_proj", mha.o_proj)


def _mla(name: str, mla: MLA) -> Iterator[Destination]:
    if mla.config.q_lora_rank is None:
        yield from _linear(f"{name}.q_proj", mla.q_proj)
    else:
        yield from _linear(f"{name}.q_a_proj", mla.q_a)
        yield f"{name}.q_a_layernorm.weight", mla.q_norm.weight
        yield from _linear(f"{name}.q_b_proj", mla.q_b)
    yield from _linear(f"{name}.kv_a_proj_with_mqa", mla.kv_a)
    yield f"{name}.kv_a_layernorm.weight", mla.kv_norm.weight
    yield from _linear(f"{name}.kv_b_proj", mla.kv_b)
    yield from _linear(f"{name}.o_proj", mla.o_proj)


def _mlp(name: str, mlp: MLP) -> Iterator[Destination]:
    yield from _stacked([f"{name}.gate_proj", f"{name}.up_proj"], [mlp.inner, mlp.inner], mlp.gate_up)
    yield from _linear(f"{name}.down_proj", mlp.down)


def _moe(name: str, moe: MoE) -> Iterator[Destination]:
    yield f"{name}.gate.weight", moe.router
    if moe.router_bias is not None:
        yield f"{name}.gate.e_score_correction_bias", moe.router_bias
    yield from _quantized_experts(name, moe) if isinstance(moe, QuantizedMoE) else _experts(name, moe)
    if moe.shared is not None:
        yield from _mlp(f"{name}.shared_experts", moe.shared)


def _experts(name: str, moe: MoE) -> Iterator[Destination]:
    for expert in range(moe.config.num_experts):
        gate, up = moe.gate_up[expert].chunk(2)
        yield f"{name}.experts.{expert}.gate_proj.weight", gate
        yield f"{name}.experts.{expert}.up_proj.weight", up
        yield f"{name}.experts.{expert}.down_proj.weight", moe.down[expert]


def _quantized_experts(name: str, moe: QuantizedMoE) -> Iterator[Destination]:
    """Shared experts that are further ones of ours are one linear of the checkpoint, as wide as all of them."""
    layout, experts, inner, num_routed = moe.ops.quantized_layout, moe.experts, moe.inner, moe.config.num_experts
    for expert in range(num_routed):
        gate_up = experts.gate_up[expert]
        yield f"{name}.experts.{expert}.gate_proj.weight", _quantized(layout, gate_up.rows(0, inner))
        yield f"{name}.experts.{expert}.up_proj.weight", _quantized(layout, gate_up.rows(inner, inner))
        yield f"{name}.experts.{expert}.down_proj.weight", _quantized(layout, experts.down[expert])
    if experts.num_shared:
        shared, width = range(experts.num_shared), inner * experts.num_shared
        for number, part in enumerate(("gate", "up")):
            pieces = tuple(
                Piece(experts.gate_up[num_routed + i].rows(number * inner, inner), i * inner, 0) for i in shared
            )
            yield f"{name}.shared_experts.{part}_proj.weight", QuantizedPart(layout, (width, moe.width), pieces)
        pieces = tuple(Piece(experts.down[num_routed + i], 0, i * inner) for i in shared)
        yield f"{name}.shared_experts.down_proj.weight", QuantizedPart(layout, (moe.width, width), pieces)


def _quantized(layout: QuantizedLayout, weight: QuantizedWeight) -> QuantizedPart:
    return QuantizedPart(layout, (weight.out_width, weight.in_width), (Piece(weight, 0, 0),))
