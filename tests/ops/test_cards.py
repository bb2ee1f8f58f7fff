"""Kernels compile for GPUs that are not here, with no more shared memory a block than those have."""

import json
import os
import subprocess
import sys

import pytest

AMPERE, ADA, HOPPER = 80, 89, 90
SHARED_BYTES = {AMPERE: 99 * 1024, ADA: 99 * 1024, HOPPER: 227 * 1024}
"""Of a block of threads on A10, A40, 4090, L4 and L40S; A100 and Orin, which take the same tiles, have 163 KB.
The H100 has tiles of its own."""


def compiled(*arguments: object) -> list[dict]:
    """In a process of its own: in this one kernels run in the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ops.cards", *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.cpu_only
@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "model", "more"),
    [
        (ADA, "tiny", []),
        (ADA, "small", ["--deterministic"]),
        (ADA, "base", []),
        (ADA, "tiny", ["--quantization", "fp8", "--cache", "fp8"]),
        (AMPERE, "small", ["--quantization", "int4"]),
        (HOPPER, "small", []),
        (HOPPER, "base", ["--quantization", "fp8"]),
    ],
)
def test_no_kernel_takes_more_shared_memory_than_the_card_has(capability: int, model: str, more: list[str]):
    kernels = compiled(capability, SHARED_BYTES[capability], model, *more)
    names = {kernel["kernel"].rpartition(".")[2] for kernel in kernels}
    expected = {"decode_heads", "prefill_heads"} if model == "tiny" else {"decode_latent", "prefill_expanded"}
    if "--cache" in more:
        expected = {"decode_single", "prefill_heads"}
    if "int4" in more:
        expected |= {"_logits"}
    if capability == HOPPER:
        expected |= {"_lay_out"}  # the copy engine's, whose tiles are the largest
    assert names >= expected | {"_gate_up", "_down", "_place_part", "_pick", "_begin_decode"}, "steps of all kinds ran"
    assert [kernel for kernel in kernels if kernel["shared_bytes"] > SHARED_BYTES[capability]] == []
