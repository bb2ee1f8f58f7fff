"""Kernels for CUDA; where cuBLAS wins, its GEMMs."""

import triton

from vl2.ops.attention.kernel import attend_heads
from vl2.ops.attention.kernel_mla import attend_mla, decode_mla
from vl2.ops.cublas import linear_gelu, linear_onto, tower_linear, tower_linear_onto
from vl2.ops.experts.kernel import mix_experts
from vl2.ops.experts.kernel_common import swiglu
from vl2.ops.gate.kernel import norm_and_route, route
from vl2.ops.logits import project_logits as logits
from vl2.ops.norm.kernel import add_rms_norm, rms_norm
from vl2.ops.norm.layer_kernel import add_layer_norm
from vl2.ops.patches.kernel import cut_patches
from vl2.ops.quantized_experts.kernel import mix_quantized_experts
from vl2.ops.quantized_linear.kernel import quantized_linear, quantized_linear_both, quantized_logits
from vl2.ops.quantized_weight import triton_layout as quantized_layout
from vl2.ops.rope.kernel import write_heads, write_latent
from vl2.ops.sampling.kernel import sample
from vl2.ops.single_row.kernel import linear, linear_both
from vl2.ops.single_token import norm_and_mix
from vl2.ops.step.kernel import begin_decode

NAME = f"triton {triton.__version__}"

__all__ = [
    "NAME", "add_layer_norm", "add_rms_norm", "attend_heads", "attend_mla", "begin_decode", "cut_patches", "decode_mla",
    "linear", "linear_both", "linear_gelu", "linear_onto", "logits", "mix_experts", "mix_quantized_experts",
    "norm_and_mix", "norm_and_route", "quantized_layout", "quantized_linear", "quantized_linear_both",
    "quantized_logits", "rms_norm", "route", "sample", "swiglu", "tower_linear", "tower_linear_onto", "write_heads",
    "write_latent",
]  # fmt: skip
