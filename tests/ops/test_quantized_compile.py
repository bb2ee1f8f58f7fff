"""The 4-bit and float8 kernels compile for Hopper where there is no GPU, to what makes them fast there."""

import json
import os
import subprocess
import sys

import pytest

COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vl2.ops.quantized_experts import kernel as experts
from vl2.ops.quantized_linear import kernel as linear

bits, codes, scales = int(sys.argv[1]), *sys.argv[2:]
POINTERS = dict(codes=codes, scales=scales, partial="*fp32", arrivals="*i32", pairs="*i32", block_experts="*i32")
FLOATS = ("x", "bias", "out", "hidden", "results")
ALIGNED = (*POINTERS, *FLOATS, "row_words", "out_width", "row_stride", "width", "inner")
step = dict(GROUP_STEPS=1, STEP=128, BITS=bits, HAS_ASM=True, CHAINED=True, PRECISION="tf32", SCALES_FIRST=False)
tile = dict(BLOCK_M=16, BLOCK_N=32)
found = {}
for kernel, own in (
    (linear._linear, dict(HAS_BIAS=True, SPLITS=4)),
    (experts._gate_up, dict(NUM_ACTIVE=8, NUM_CHOSEN=6, GROUP=8)),
    (experts._down, dict(NUM_CHOSEN=0, GROUP=8)),
):
    constants = step | tile | own
    signature = {
        name: "constexpr" if name in constants else POINTERS.get(name, "*bf16" if name in FLOATS else "i32")
        for name in kernel.arg_names
    }
    aligned = [(index,) for index, name in enumerate(kernel.arg_names) if name in ALIGNED and name not in constants]
    source = ASTSource(kernel, signature, constants, {place: [["tt.divisibility", 16]] for place in aligned})
    options = dict(num_stages=4, launch_pdl=True)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    words = ("ldmatrix", "mma.sync", "lop3", "prmt", "shfl", "cp.async.cg")
    found[kernel.__name__] = {word: ptx.count(word) for word in words}
print(json.dumps(found))
"""


@pytest.mark.cpu_only
@pytest.mark.parametrize(("bits", "codes", "scales"), [(4, "*i16", "*bf16"), (8, "*fp8e4nv", "*fp32")])
def test_codes_reach_the_tensor_cores_without_moving_between_threads(bits: int, codes: str, scales: str):
    """Words come by 16-byte copies and ldmatrix; unpacking takes lop3; nothing is shuffled, and bytes are permuted only
    to make pairs of bfloat16 of float8, twice for four."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, str(bits), codes, scales]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, counts in json.loads(done.stdout.splitlines()[-1]).items():
        assert counts["mma.sync"] and counts["ldmatrix"] and counts["cp.async.cg"], name
        assert counts["shfl"] == 0 and counts["prmt"] == (0 if bits == 4 else counts["lop3"]), name
        assert counts["lop3"] % 4 == 0 and counts["lop3"], name
