"""Decoding steps on a CPU by native code: the model's weights, described once, and one call for all of its layers."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vl2.core.model_config import LanguageConfig
from vl2.model.attention import INNER_NORM_EPS, MLA
from vl2.model.decoder import Decoder, DecoderLayer
from vl2.model.kv_pool import KVPool
from vl2.model.linear import Linear, QuantizedLinear
from vl2.model.moe import MLP, MoE, QuantizedMoE
from vl2.model.native_prompts import NativePrompts
from vl2.model.packing import multiplies_natively
from vl2.ops.gate.native import set_choice
from vl2.ops.native import structures
from vl2.ops.native.builds import load
from vl2.ops.native.linear import NativeLinear
from vl2.ops.native.matrices import STRIP, describe, describe_quantized
from vl2.ops.native.prompts import workers
from vl2.ops.native.structures import BFLOAT12_BLOCKS
from vl2.ops.quantized_weight.weight import QuantizedWeight

log = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16)


class UnknownLayout(Exception):
    """A weight that the library cannot read; torch can."""


class NativeDecoder:
    """Holds what the library points to."""

    def __init__(
        self, library: Path, config: LanguageConfig, decoder: Decoder, pool: KVPool, max_rows: int, threads: int
    ) -> None:
        """Raises: UnknownLayout."""
        self._library = load(library)
        self._decoder, self._pool = decoder, pool
        self._kept: list[object] = [pool]  # not the decoder, which holds this by way of its prompts
        self._engine: int | None = None
        self.max_rows, self.vocabulary = max_rows, config.vocab_size
        layers = [self._layer(layer, cache) for layer, cache in zip(decoder.layers, pool.layers, strict=True)]
        self._model = self._describe(config, decoder, pool, self._array(structures.Layer, layers))
        self._engine = self._library.vl2_engine_new(ctypes.byref(self._model), threads)
        if self._engine is None:
            raise MemoryError("no memory for the native decoding step")

    def __del__(self) -> None:
        if self._engine is not None:
            self._library.vl2_engine_free(self._engine)

    def run(self, token_ids: np.ndarray, positions: np.ndarray, tables: np.ndarray) -> torch.Tensor:
        """One token of each of S sequences, whose cache holds all before it: writes its cache rows, computes logits.

        token_ids, positions  [S] int64
        tables                [S, pages] int32: each sequence's pages in order, up to that of its position at least
        Returns               [S, V] float32
        """
        rows = len(token_ids)
        assert rows <= self.max_rows and token_ids.dtype == positions.dtype == np.int64 and tables.dtype == np.int32
        assert all(array.flags.c_contiguous for array in (token_ids, positions, tables))
        logits = torch.empty(rows, self.vocabulary)
        step = structures.Step(
            rows=rows,
            token_ids=token_ids.ctypes.data,
            positions=positions.ctypes.data,
            tables=tables.ctypes.data,
            table_width=tables.shape[1],
            logits=logits.data_ptr(),
        )
        self._library.vl2_step(self._engine, ctypes.byref(step))
        return logits

    def prompts(self) -> NativePrompts | None:
        """The same layers for prompts; None: not with these weights, or on this processor."""
        return NativePrompts(self._model, self._kept, self._pool) if self._takes_prompts() else None

    def _takes_prompts(self) -> bool:
        own, described = workers(torch.get_num_threads()), self._model
        dense = [layer.mlp for layer in self._decoder.layers if isinstance(layer.mlp, MLP)]
        widths = [described.hidden, *(2 * mlp.inner for mlp in dense)]  # as experts' are (source/prompt.h)
        is_known = described.is_bfloat16 and all(width % 64 == 0 for width in widths) and described.page_size % 16 == 0
        if own is None or not own.decodes or not is_known or not multiplies_natively(self._decoder):
            return False
        natives = [module.native for module in self._decoder.modules() if isinstance(module, Linear)]
        natives += [module.expand for module in self._decoder.modules() if isinstance(module, MLA)]
        return all(native is None or native.matrix.in_width % STRIP == 0 for native in natives)

    # ---- describing

    def _describe(
        self, config: LanguageConfig, decoder: Decoder, pool: KVPool, layers: ctypes.Array[structures.Layer]
    ) -> structures.Model:
        mla, moe = config.mla, config.moe
        attention = decoder.layers[0].attention
        model = structures.Model(
            num_layers=config.layers,
            hidden=config.hidden_size,
            vocabulary=config.vocab_size,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            num_groups=1,
            widest=max(config.dense_width, moe.expert_width if moe else 0, moe.shared_width if moe else 0),
            page_size=pool.page_size,
            num_slots=(pool.num_pages + 1) * pool.page_size,
            max_rows=self.max_rows,
            max_context=len(decoder.rope.cos),
            is_bfloat16=decoder.embed_tokens.dtype == torch.bfloat16,
            eps=config.rms_norm_eps,
            inner_eps=INNER_NORM_EPS,
            scale=attention.scale if isinstance(attention, MLA) else config.head_dim**-0.5,
            embeddings=decoder.embed_tokens.data_ptr(),
            cos=self._floats(decoder.rope.cos),
            sin=self._floats(decoder.rope.sin),
            final_norm=self._floats(decoder.norm.weight),
            lm_head=self._linear(decoder.native_head or decoder.lm_head),
            layers=ctypes.addressof(layers),
        )
        if mla is not None:
            model.rank, model.q_rank = mla.kv_lora_rank, mla.q_lora_rank or 0
            model.nope_dim, model.rope_dim, model.value_dim = mla.nope_dim, mla.rope_dim, mla.value_dim
        if moe is not None:
            set_choice(model, moe)
            joined = {layer.mlp.num_shared for layer in decoder.layers if isinstance(layer.mlp, QuantizedMoE)}
            model.num_joined = joined.pop() if joined else 0
            if joined or any(type(layer.mlp) is MoE for layer in decoder.layers if model.num_joined):
                raise UnknownLayout("layers whose experts are not all alike")
        return model

    def _layer(self, layer: torch.nn.Module, cache: torch.Tensor) -> structures.Layer:
        assert isinstance(layer, DecoderLayer)
        attention, mlp = layer.attention, layer.mlp
        described = structures.Layer(
            attention_norm=self._floats(layer.attention_norm.weight),
            mlp_norm=self._floats(layer.mlp_norm.weight),
            o_proj=self._linear(attention.o_proj),
            pool=cache.data_ptr(),
        )
        if isinstance(attention, MLA):
            described.kv_a, described.kv_b = self._linear(attention.kv_a), self._linear(attention.kv_b)
            described.kv_norm = self._floats(attention.kv_norm.weight)
            if attention.expand is not None:
                described.kv_expand = self._linear(attention.expand)
            if attention.config.q_lora_rank is None:
                described.q_b = self._linear(attention.q_proj)
            else:
                described.q_a, described.q_b = self._linear(attention.q_a), self._linear(attention.q_b)
                described.q_norm = self._floats(attention.q_norm.weight)
        else:
            described.qkv = self._linear(attention.qkv)
        dense = mlp.shared if isinstance(mlp, MoE) else mlp
        if isinstance(dense, MLP):
            described.gate_up, described.down = self._linear(dense.gate_up), self._linear(dense.down)
        if isinstance(mlp, MoE):
            described.router = self._linear(mlp.router)
            described.router_bias = None if mlp.router_bias is None else self._floats(mlp.router_bias)
            described.expert_gate_up, described.expert_down = self._experts(mlp)
        return described

    def _experts(self, mlp: MoE) -> tuple[int, int]:
        """Where gates and ups are described, and downs."""
        if mlp.described is not None:
            for matrix in (*mlp.described.gate_up, *mlp.described.down):
                self._readable(matrix)
            self._kept.append(mlp.described)
            return ctypes.addressof(mlp.described.gate_up), ctypes.addressof(mlp.described.down)
        own = mlp.experts if isinstance(mlp, QuantizedMoE) else mlp
        up, down = (
            self._array(structures.Matrix, [self._linear(weight) for weight in _each(weights)])
            for weights in (own.gate_up, own.down)
        )
        return ctypes.addressof(up), ctypes.addressof(down)

    def _array(self, kind: type[ctypes.Structure], items: Iterable[ctypes.Structure]) -> ctypes.Array[Any]:
        items = list(items)
        array = (kind * len(items))(*items)
        self._kept.append(array)
        return array

    def _floats(self, tensor: torch.Tensor) -> int:
        """Of a small tensor, of which there may be a second copy."""
        floats = tensor.detach().float().contiguous()
        self._kept.append(floats)
        return floats.data_ptr()

    def _linear(self, weight: object, bias: torch.Tensor | None = None) -> structures.Matrix:
        """Of a linear, or of a weight by itself."""
        native = weight.native if isinstance(weight, Linear) else weight
        if isinstance(native, NativeLinear):
            self._kept.append(native)
            return self._readable(native.matrix)
        if isinstance(weight, Linear | QuantizedLinear):
            return self._linear(weight.weight, weight.bias)
        if bias is not None:
            bias = bias.detach().float()
        self._kept += [weight, bias]
        if isinstance(weight, QuantizedWeight):
            matrix = describe_quantized(weight, bias)
        else:
            assert isinstance(weight, torch.Tensor)
            matrix = describe(weight, bias)
        if matrix is None:
            raise UnknownLayout(f"how a weight of {self._shape(weight)} lies in memory")
        return matrix

    def _readable(self, matrix: structures.Matrix) -> structures.Matrix:
        if matrix.layout == BFLOAT12_BLOCKS and not hasattr(self._library, "vl2_shorten"):
            raise UnknownLayout("weights in 12 bits, which this build of the library does not multiply")
        return matrix

    @staticmethod
    def _shape(weight: object) -> str:
        if isinstance(weight, QuantizedWeight):
            return f"{weight.out_width} x {weight.in_width} in {weight.scheme}"
        return str(list(weight.shape)) if isinstance(weight, torch.Tensor) else str(weight)


def _each(weights: Any) -> Iterable[object]:
    """The matrices of a stack."""
    return (weights[idx] for idx in range(len(weights.codes))) if isinstance(weights, QuantizedWeight) else weights
