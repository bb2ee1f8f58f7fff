"""On a CPU, weights are laid out once as its kernels read them (ops/linear.py), matrix by matrix: no second copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from vl2.model.attention import MLA
from vl2.model.decoder import Decoder, DecoderLayer
from vl2.model.linear import Linear, QuantizedLinear
from vl2.model.moe import MoE
from vl2.model.native_tower import describe_projector, describe_tower
from vl2.model.projector import Projector
from vl2.model.vision import VisionTower
from vl2.ops import native_backend
from vl2.ops.linear import can_pack, pack
from vl2.ops.native.linear import describe_linear, multiplies, pack_linear, pack_plain, shorten_linear
from vl2.ops.native.matrices import describe_experts, have_strips
from vl2.ops.native.short import Shortener, shortener
from vl2.ops.native.structures import Matrix

SMALL_MATRIX = 2**19
"""Elements: 2 MiB of float32."""

MOST_CACHED_BYTES = 2**28
"""Of a decoder whose weights lie in the last cache for a good part. To read fewer of them gains nothing there, and to
unpack them takes 5 % of a prompt that matrix units multiply (docs/log.md, 2026-11-27)."""


class PackedMatrices(nn.ParameterList):
    """Packed matrices in the place of one stacked parameter; of shortened ones, the bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.described: list[torch.Tensor | Matrix] = []  # what `describe_experts` takes

    @property
    def nbytes(self) -> int:
        return sum(matrix.nbytes for matrix in self)


@torch.inference_mode()
def pack_weights(model: nn.Module) -> None:
    """Pack what can be packed. Afterwards the weights can be multiplied with, but neither read nor changed.

    model  a DeepseekVL2, or its decoder alone

    Embeddings are left alone; the vocabulary's matrix, too, where torch multiplies with it. So is MLA's kv_b, whose
    halves are multiplied by head: where the library multiplies, prompts have a packed copy of it; elsewhere it becomes
    float32 if it is small, as a bfloat16 product by head takes torch 25 µs and more, a small float32 one 7. What a step
    of decoding reads and the library multiplies is shortened to 12 bits a weight, losing nothing: routed experts, and
    on matrix units linears and the vocabulary's matrix too; there models whose weights lie in the caches keep 16 bits,
    but for that matrix.
    """
    if not can_pack(next(model.parameters())):
        return
    by_head = {module.kv_b: module for module in model.modules() if isinstance(module, MLA)}
    shorteners = _shorteners(model)
    for module in model.modules():
        if module in by_head:
            by_head[module].expand = pack_linear(module.weight)
            if by_head[module].expand is None and module.weight.numel() <= SMALL_MATRIX:
                module.weight = nn.Parameter(module.weight.float(), requires_grad=False)
        elif isinstance(module, Linear):
            _pack_linear(module, shorteners.get(module))
        elif type(module) is MoE:
            for name in ("gate_up", "down"):
                _pack_each(module, name, shorteners.get(module))
        elif isinstance(module, Decoder):
            _pack_head(module, shortener())
    for module in model.modules():
        if isinstance(module, VisionTower):
            module.native = describe_tower(module)
        elif isinstance(module, Projector):
            module.native = describe_projector(module)
    for module in model.modules():  # their shared experts are packed by now, too
        if type(module) is MoE:
            up, down = (getattr(module, name).described for name in ("gate_up", "down"))
            module.described = describe_experts(up, down, *_shared(module))


def multiplies_natively(decoder: nn.Module) -> bool:
    """Whether no linear and no expert of a packed decoder is left to torch, but for MLA's kv_b.

    Weights in few bits are: a prompt's products with them are torch's.
    """
    by_head = {module.kv_b for module in decoder.modules() if isinstance(module, MLA)}
    linears = [module for module in decoder.modules() if isinstance(module, Linear) and module not in by_head]
    is_quantized = any(isinstance(module, QuantizedLinear) for module in decoder.modules())
    experts = [module for module in decoder.modules() if isinstance(module, MoE)]
    return not is_quantized and all(linear.native for linear in linears) and all(layer.described for layer in experts)


def _packed(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(pack(weight), requires_grad=False)


def _pack_each(module: MoE, name: str, shortening: Shortener | None) -> None:
    """Replace a parameter [E, Out, In] by its packed matrices, shortened where they lose nothing by it."""
    stacked = getattr(module, name).data
    delattr(module, name)
    matrices = PackedMatrices()
    for matrix in stacked:
        packed = _packed(matrix)
        short = None if shortening is None else shortening.shorten(packed)
        matrices.append(packed if short is None else nn.Parameter(short[1], requires_grad=False))
        matrices.described.append(packed if short is None else short[0])
    setattr(module, name, matrices)


def _pack_linear(module: Linear, shortening: Shortener | None) -> None:
    packed = _packed(module.weight)
    short = None if shortening is None else shorten_linear(packed, module.bias, shortening)
    module.native = short or describe_linear(packed, module.bias)
    module.weight = packed if short is None else nn.Parameter(short.kept[0], requires_grad=False)


def _pack_head(decoder: Decoder, shortening: Shortener | None) -> None:
    """The vocabulary's matrix, where the library multiplies prompts too, of which it meets one row."""
    if isinstance(decoder.lm_head, nn.Parameter) and decoder.ops is native_backend:
        decoder.native_head = pack_plain(decoder.lm_head, shortening)
    if decoder.native_head is not None:
        decoder.lm_head = nn.Parameter(decoder.native_head.kept[0], requires_grad=False)


def _shared(module: MoE) -> tuple[torch.Tensor | Matrix | None, torch.Tensor | Matrix | None]:
    """What `describe_experts` takes of the shared experts."""
    own = module.shared
    if own is None or not isinstance(own.gate_up, Linear) or not isinstance(own.down, Linear):
        return None, None
    up, down = (part.weight if part.native is None else part.native.matrix for part in (own.gate_up, own.down))
    return up, down


def _shorteners(model: nn.Module) -> dict[nn.Module, Shortener]:
    """Of layers of experts and linears whose weights are shortened: what a decoding step reads, and none but the
    library multiplies."""
    shortening, found = shortener(), dict[nn.Module, Shortener]()
    for decoder in model.modules():
        if isinstance(decoder, Decoder) and shortening is not None and _gains(decoder):
            found |= {module: shortening for layer in decoder.layers for module in _shortened(layer)}
    return found


def _gains(decoder: Decoder) -> bool:
    is_cached = sum(parameter.nbytes for parameter in decoder.parameters()) < MOST_CACHED_BYTES
    return decoder.ops is native_backend and not (multiplies() and is_cached)


def _shortened(layer: nn.Module) -> Iterator[nn.Module]:
    assert isinstance(layer, DecoderLayer)
    parts: list[nn.Module] = [layer.attention, layer.mlp]
    if type(layer.mlp) is MoE:
        if _has_strips(layer.mlp):
            yield layer.mlp
        else:
            parts.pop()  # torch may multiply with its shared experts
    if multiplies():
        yield from (linear for part in parts for linear in part.modules() if isinstance(linear, Linear))


def _has_strips(module: MoE) -> bool:
    own, _ = module.expert_weights
    shared = [weight.shape for weight in (own.shared_gate_up, own.shared_down) if weight is not None]
    return have_strips(module.gate_up.shape[1:], module.down.shape[1:], *shared)
