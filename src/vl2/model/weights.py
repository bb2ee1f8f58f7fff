"""Official tensor names → our parameters, and a load that streams tensor by tensor.

The only file with the official checkpoint's spellings. Fused weights (q|k|v, gate|up, all experts) are slices of one
parameter: each official tensor has exactly one destination, contiguous in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from vl2.checkpoint.folder import BlockReader, TensorInfo, list_tensors
from vl2.core.errors import CheckpointError
from vl2.model.attention import MHA, MLA
from vl2.model.decoder import DecoderLayer
from vl2.model.linear import LayerNorm, Linear
from vl2.model.moe import MLP, MoE
from vl2.model.vision import VisionBlock
from vl2.model.vl2 import DeepseekVL2
from vl2.ops.saturate import to_dtype

UNUSED_PREFIX = "vision.attn_pool."
TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}

Destination = tuple[str, torch.Tensor]


def load_weights(model: DeepseekVL2, folder: Path, on_progress: Callable[[int, int], None] | None = None) -> None:
    """Fill the model from a checkpoint folder. `on_progress(bytes done, bytes in all)` is called after each tensor.

    Raises: CheckpointError naming the first missing, extra or misshapen tensor.
    """
    infos = {name: info for name, info in list_tensors(folder).items() if not name.startswith(UNUSED_PREFIX)}
    targets = dict(destinations(model))
    _check_names(folder, infos, targets)
    total = sum(info.num_bytes for info in infos.values())
    done = 0
    with BlockReader() as reader:
        for info in sorted(infos.values(), key=lambda info: (info.file, info.start)):
            _copy(reader, info, targets[info.name])
            done += info.num_bytes
            if on_progress is not None:
                on_progress(done, total)


@torch.no_grad()
def draw_weights(model: DeepseekVL2, seed: int = 0) -> None:
    """Random weights for measuring: N(0, 0.02), norms 1, biases 0. Their routing spreads over the experts."""
    generator = torch.Generator(model.device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.fill_(1.0)
        elif parameter.dim() < 2:
            parameter.zero_()
        else:
            for part in parameter.split(1) if parameter.dim() == 3 else (parameter,):
                part.normal_(0.0, 0.02, generator=generator)


def _check_names(folder: Path, infos: dict[str, TensorInfo], targets: dict[str, torch.Tensor]) -> None:
    missing = [name for name in targets if name not in infos]
    extra = [name for name in infos if name not in targets]
    for problem, names in (("lacks", missing), ("has unknown", extra)):
        if names:
            raise CheckpointError(
                f"{folder} {problem} {len(names)} tensors, first {names[0]}; "
                f"do config.json and the weights belong together?"
            )
    for name, target in targets.items():
        info = infos[name]
        if info.shape != tuple(target.shape):
            raise CheckpointError(
                f"{info.file}: {name} has shape {list(info.shape)}, but config.json asks for {list(target.shape)}"
            )
        if info.dtype not in TORCH_DTYPES:
            raise CheckpointError(f"{info.file}: {name} has type {info.dtype}; weights must be F32, BF16 or F16")


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
        yield from _decoder_layer(f"language.model.layers.{index}", layer)
    yield "language.model.norm.weight", decoder.norm.weight
    yield "language.lm_head.weight", decoder.lm_head


def _linear(name: str, linear: Linear) -> Iterator[Destination]:
    yield f"{name}.weight", linear.weight
    if linear.bias is not None:
        yield f"{name}.bias", linear.bias


def _stacked(names: list[str], sizes: list[int], linear: Linear) -> Iterator[Destination]:
    """Several official linears that are one GEMM here, stacked along the output."""
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


def _decoder_layer(name: str, layer: DecoderLayer) -> Iterator[Destination]:
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
    inner = mlp.down.weight.shape[1]
    yield from _stacked([f"{name}.gate_proj", f"{name}.up_proj"], [inner, inner], mlp.gate_up)
    yield from _linear(f"{name}.down_proj", mlp.down)


def _moe(name: str, moe: MoE) -> Iterator[Destination]:
    yield f"{name}.gate.weight", moe.router
    if moe.router_bias is not None:
        yield f"{name}.gate.e_score_correction_bias", moe.router_bias
    for expert in range(moe.config.num_experts):
        gate, up = moe.gate_up[expert].chunk(2)
        yield f"{name}.experts.{expert}.gate_proj.weight", gate
        yield f"{name}.experts.{expert}.up_proj.weight", up
        yield f"{name}.experts.{expert}.down_proj.weight", moe.down[expert]
    if moe.shared is not None:
        yield from _mlp(f"{name}.shared_experts", moe.shared)
