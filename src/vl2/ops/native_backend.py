"""A CPU's ops where the native library is there: torch's products, and what lies between them in one pass each."""

from vl2.ops.activation import linear_gelu
from vl2.ops.attention.reference import attend_heads, attend_mla
from vl2.ops.experts.native import mix_experts, swiglu
from vl2.ops.gate.native import route
from vl2.ops.linear import multiply as linear
from vl2.ops.linear import multiply as tower_linear
from vl2.ops.linear import multiply_both as linear_both
from vl2.ops.logits import project_logits as logits
from vl2.ops.norm.native import add_layer_norm, add_rms_norm, rms_norm
from vl2.ops.patches.reference import cut_patches
from vl2.ops.quantized_experts.reference import mix_quantized_experts
from vl2.ops.quantized_linear.reference import quantized_linear, quantized_linear_both, quantized_logits
from vl2.ops.quantized_weight import torch_layout as quantized_layout
from vl2.ops.rope.native import write_heads, write_latent
from vl2.ops.sampling.reference import sample
from vl2.ops.step.reference import begin_decode

NAME = "torch and native"
decode_mla = linear_onto = norm_and_mix = norm_and_route = tower_linear_onto = None

__all__ = [
    "NAME", "add_layer_norm", "add_rms_norm", "attend_heads", "attend_mla", "begin_decode", "cut_patches", "decode_mla",
    "linear", "linear_both", "linear_gelu", "linear_onto", "logits", "mix_experts", "mix_quantized_experts",
    "norm_and_mix", "norm_and_route", "quantized_layout", "quantized_linear", "quantized_linear_both",
    "quantized_logits", "rms_norm", "route", "sample", "swiglu", "tower_linear", "tower_linear_onto", "write_heads",
    "write_latent",
]  # fmt: skip
