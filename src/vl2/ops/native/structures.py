"""The structures of source/model.h, source/product.h and source/prompt.h, field by field."""

from __future__ import annotations

from ctypes import Structure, c_double, c_float, c_int32, c_int64, c_void_p
from typing import Any

FLOAT32_ROWS, BFLOAT16_ROWS, BFLOAT16_BLOCKS, INT4_BLOCKS, INT8_ROWS, BFLOAT12_BLOCKS = range(6)
"""Layouts of a matrix (source/product.h)."""


def _fields(kind: type, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class Matrix(Structure):
    _fields_ = [
        *_fields(c_void_p, "data bias scales"),
        *_fields(c_int64, "out_width in_width padded_in group"),
        *_fields(c_int32, "layout block has_bfloat16_scales filler"),
    ]


class Layer(Structure):
    _fields_ = [
        *_fields(c_void_p, "attention_norm mlp_norm"),
        *_fields(Matrix, "qkv q_a q_b kv_a kv_b kv_expand"),
        *_fields(c_void_p, "q_norm kv_norm"),
        *_fields(Matrix, "o_proj gate_up down router"),
        *_fields(c_void_p, "router_bias expert_gate_up expert_down pool"),
    ]


class Model(Structure):
    _fields_ = [
        *_fields(c_int64, "num_layers hidden vocabulary heads kv_heads head_dim"),
        *_fields(c_int64, "rank q_rank nope_dim rope_dim value_dim"),
        *_fields(c_int64, "num_experts num_active num_groups num_active_groups num_joined widest"),
        *_fields(c_int64, "page_size num_slots max_rows max_context"),
        *_fields(c_int32, "is_bfloat16 choice scoring normalises"),
        *_fields(c_float, "eps inner_eps scale routed_scale"),
        *_fields(c_void_p, "embeddings cos sin final_norm"),
        *_fields(Matrix, "lm_head"),
        *_fields(c_void_p, "layers"),
    ]


class Step(Structure):
    _fields_ = [
        *_fields(c_int64, "rows"),
        *_fields(c_void_p, "token_ids positions tables"),
        *_fields(c_int64, "table_width"),
        *_fields(c_void_p, "logits"),
    ]


class PromptAttention(Structure):
    _fields_ = [
        *_fields(c_void_p, "q keys values out pages"),
        *_fields(c_int64, "page_size rows context heads kv_heads dim value_dim"),
        *_fields(c_int64, "q_row q_head key_row key_head value_row value_head out_row out_head"),
        *_fields(c_void_p, "tails"),
        *_fields(c_int64, "tail_row tail_dim"),
        *_fields(c_float, "scale"),
        *_fields(c_int32, "is_causal"),
    ]


class RowsJob(Structure):
    _fields_ = [
        *_fields(c_void_p, "from_rows others weights out"),
        *_fields(c_int64, "rows width choices is_bfloat16"),
    ]


class NormJob(Structure):
    _fields_ = [
        *_fields(c_void_p, "x delta weights bias sums out"),
        *_fields(c_int64, "rows width x_row delta_row out_row is_bfloat16"),
        *_fields(c_double, "eps"),
    ]


class HeadsJob(Structure):
    _fields_ = [
        *_fields(c_void_p, "qkv q pool cos sin positions slots"),
        *_fields(c_int64, "rows qkv_row heads kv_heads dim num_slots is_bfloat16"),
    ]


class ExpertsJob(Structure):
    _fields_ = [
        *_fields(c_void_p, "x ids weights gate_up down out"),
        *_fields(c_int64, "tokens width x_row choices num_experts has_shared"),
    ]


class RouterJob(Structure):
    _fields_ = [
        *_fields(c_void_p, "x"),
        *_fields(Matrix, "router"),
        *_fields(c_void_p, "bias ids weights choice"),
        *_fields(c_int64, "rows x_row is_bfloat16"),
    ]


class LinearJob(Structure):
    _fields_ = [
        *_fields(c_void_p, "x out"),
        *_fields(Matrix, "weight"),
        *_fields(c_int64, "rows x_row out_row gelu"),
    ]


class LatentJob(Structure):
    _fields_ = [
        *_fields(c_void_p, "x weights out cos sin positions slots"),
        *_fields(c_int64, "rows x_row rank rope_dim heads head_width is_bfloat16"),
        *_fields(c_double, "eps"),
    ]


class ChunkRows(Structure):
    _fields_ = [*_fields(c_void_p, "pages"), *_fields(c_int64, "start rows context")]


class DecoderJob(Structure):
    _fields_ = [
        *_fields(c_void_p, "model x positions slots last_rows chunks last_chunks out"),
        *_fields(c_int64, "rows num_chunks num_last num_last_chunks"),
    ]


class TowerBlock(Structure):
    _fields_ = [*_fields(c_void_p, "norm1 norm1_bias norm2 norm2_bias"), *_fields(Matrix, "qkv proj fc1 fc2")]


class TowerJob(Structure):
    _fields_ = [
        *_fields(c_void_p, "pixels numbers places blocks norm norm_bias out"),
        *_fields(Matrix, "embed"),
        *_fields(c_int64, "tiles side grid patch width heads inner num_blocks"),
        *_fields(c_double, "eps"),
    ]


class ProjectorJob(Structure):
    _fields_ = [
        *_fields(c_void_p, "features linears out"),
        *_fields(c_int64, "tiles grid width ratio num_linears"),
    ]


STRUCTURES = (
    Matrix,
    Layer,
    Model,
    Step,
    PromptAttention,
    RowsJob,
    HeadsJob,
    ExpertsJob,
    RouterJob,
    LinearJob,
    LatentJob,
    NormJob,
    ChunkRows,
    DecoderJob,
    TowerBlock,
    TowerJob,
    ProjectorJob,
)
"""In the order of `vl2_sizes`."""
