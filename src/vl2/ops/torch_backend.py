"""The reference of every op: plain torch, on any device."""

from vl2.ops.activation import linear_gelu
from vl2.ops.attention.reference import attend_heads, attend_mla
from vl2.ops.experts.reference import mix_experts, swiglu
from vl2.ops.gate.reference import route
from vl2.ops.norm.reference import add_layer_norm, add_rms_norm, rms_norm
from vl2.ops.rope.reference import write_heads, write_latent
from vl2.ops.sampling.reference import sample
from vl2.ops.step.reference import begin_decode

NAME = "torch"

__all__ = [
    "NAME", "add_layer_norm", "add_rms_norm", "attend_heads", "attend_mla",
    "begin_decode", "linear_gelu", "mix_experts", "rms_norm", "route", "sample", "swiglu",
    "write_heads", "write_latent",
]  # fmt: skip
