"""The 4-bit and float8 kernels compile for Hopper where there is no GPU, to what makes them fast there."""

import json
import os
import subprocess
import sys

import pytest

COMPILE = """
import json, sys
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vl2.ops.quantized_experts import kernel as experts
from vl2.ops.quantized_experts import kernel_few as few_experts
from vl2.ops.quantized_experts import kernel_float8
from vl2.ops.quantized_experts import kernel_held as held_experts
from vl2.ops.quantized_linear import kernel as linear
from vl2.ops.quantized_linear import kernel_few as few_linear
from vl2.ops.quantized_linear import kernel_held as held_linear

what, codes, scales = sys.argv[1:]
POINTERS = dict(codes=codes, scales=scales, partial="*fp32", arrivals="*i32", pairs="*i32", block_experts="*i32",
                rows=codes, row_scales="*fp32", hidden_scales="*fp32", second_codes=codes, second_scales=scales)
FLOATS = ("x", "bias", "out", "second_out", "hidden", "results")
ALIGNED = (*POINTERS, *FLOATS, "row_words", "out_width", "second_width", "row_stride", "width", "inner")
WORDS = ("ldmatrix", "mma.sync", "lop3", "prmt", "shfl", "cp.async.cg", "k32.f32.e4m3.e4m3", ".e4m3x2",
         "prefetch.global.L2", "ld.global.v4", "st.shared")
found = {}


def compile(kernel, constants, stages, label=None, num_warps=4, **others):
    types = POINTERS | others
    signature = {
        name: "constexpr" if name in constants else types.get(name, "*bf16" if name in FLOATS else "i32")
        for name in kernel.arg_names
    }
    aligned = [(index,) for index, name in enumerate(kernel.arg_names) if name in ALIGNED and name not in constants]
    source = ASTSource(kernel, signature, constants, {place: [["tt.divisibility", 16]] for place in aligned})
    options = dict(num_stages=stages, num_warps=num_warps, launch_pdl=True)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    found[label or kernel.__name__] = {word: ptx.count(word) for word in WORDS}


if what == "rounded":
    tile = dict(BLOCK_M=16, BLOCK_N=64, BLOCK_K=128, GROUP=8, CHAINED=True)
    own = dict(NUM_ACTIVE=8, NUM_CHOSEN=6, LEAST=1e-10, DTYPE=tl.bfloat16)
    compile(kernel_float8._gate_up, tile | own, 4, hidden=codes)
    compile(kernel_float8._down, tile | dict(NUM_CHOSEN=0), 4, hidden=codes)
elif what == "held":
    tile = dict(BLOCK_N=16, GROUP_STEPS=1, WORDS=32, PLANES=4, BLOCK_S=16, HAS_ASM=True, CHAINED=True)
    if codes != "*i16":
        tile |= dict(PLANES=1, BLOCK_S=64, GROUP_STEPS=64)
        compile(held_linear._linear, tile | dict(HAS_BIAS=False, NUM_STEPS=64), 1, num_warps=8)
        print(json.dumps(found))
        sys.exit()
    compile(held_linear._linear, tile | dict(HAS_BIAS=False, NUM_STEPS=16), 1)
    told = dict(HAS_BIAS=False, IS_SOFTMAX=False, NORMS=False, BLOCK_E=0, NUM_WARPS=4)
    compile(held_experts._gate_up, tile | told | dict(NUM_ACTIVE=8, NUM_CHOSEN=6, NUM_STEPS=16, GROUP=8), 1)
    compile(held_experts._down, tile | dict(NUM_CHOSEN=0, NUM_STEPS=11, GROUP=8), 1)
else:
    step = dict(GROUP_STEPS=1, STEP=128, BITS=int(what), HAS_ASM=True, CHAINED=True, PRECISION="tf32")
    tile = step | dict(SCALES_FIRST=False, BLOCK_M=16, BLOCK_N=32)
    compile(linear._linear, tile | dict(HAS_BIAS=True, SPLITS=4), 4)
    compile(experts._gate_up, tile | dict(NUM_ACTIVE=8, NUM_CHOSEN=6, GROUP=8), 4)
    compile(experts._down, tile | dict(NUM_CHOSEN=0, GROUP=8), 4)
    few = step | dict(BLOCK_M=8, BLOCK_N=16, SPLITS=4)
    compile(few_linear._linear, few | dict(HAS_BIAS=True, LINES=128), 3, label="few: linear")
    compile(few_experts._gate_up, few | dict(NUM_ACTIVE=8, NUM_CHOSEN=6, GROUP=8), 3, label="few: gate_up")
    compile(few_experts._down, few | dict(NUM_CHOSEN=0, GROUP=8, LINES=128), 3, label="few: down")
print(json.dumps(found))
"""


def compiled(*arguments: str) -> dict[str, dict[str, int]]:
    """How often each instruction is in each kernel."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.cpu_only
@pytest.mark.parametrize(("bits", "codes", "scales"), [("4", "*i16", "*bf16"), ("8", "*fp8e4nv", "*fp32")])
def test_codes_reach_the_tensor_cores_without_moving_between_threads(bits: str, codes: str, scales: str):
    """Words come by 16-byte copies and ldmatrix; unpacking takes lop3; nothing is shuffled but sums that
    warps share, and bytes are permuted only to make pairs of bfloat16 of float8, twice for four. Products of few rows
    are those of single warps, too."""
    for name, counts in compiled(bits, codes, scales).items():
        assert counts["mma.sync"] and counts["ldmatrix"] and counts["cp.async.cg"], name
        assert "few" in name or counts["shfl"] == 0, name
        assert counts["prefetch.global.L2"] == (name in ("few: linear", "few: down")), name  # before the rows are there
        assert counts["prmt"] == (0 if bits == "4" else counts["lop3"]), name
        assert counts["lop3"] % 4 == 0 and counts["lop3"], name


@pytest.mark.cpu_only
def test_rounded_rows_and_float8_codes_reach_the_tensor_cores_as_they_are():
    """By 16-byte copies into shared memory, from where the products are taken; only results are rounded to float8."""
    kernels = compiled("rounded", "*fp8e4nv", "*fp32")
    for name, counts in kernels.items():
        assert counts["k32.f32.e4m3.e4m3"] and counts["cp.async.cg"], name
        assert not counts["ldmatrix"] and not counts["mma.sync"], name
    assert kernels["_gate_up"][".e4m3x2"] and not kernels["_down"][".e4m3x2"]


@pytest.mark.cpu_only
def test_codes_that_are_held_go_from_memory_to_the_tensor_cores():
    """Eight copies of 16 bytes a thread for its codes and sixteen for its inputs; what goes through shared memory are
    scales and sums."""
    for name, counts in compiled("held", "*i16", "*bf16").items():
        assert counts["mma.sync"] == 32 and counts["lop3"] == 4 * 32, name
        assert counts["ld.global.v4"] == 8 + 16, name
        assert counts["st.shared"] <= 12 and counts["ldmatrix"] <= 1 and not counts["cp.async.cg"], name
    (float8,) = compiled("held", "*fp8e4nv", "*fp32").values()
    assert float8["mma.sync"] == 16 and float8["prmt"] == float8["lop3"] == 64  # two for four codes, to make pairs
    assert float8["shfl"] <= 16 and float8["st.shared"] <= 12 and not float8["ldmatrix"] + float8["cp.async.cg"]
