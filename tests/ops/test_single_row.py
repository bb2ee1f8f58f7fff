"""One row times a matrix: the kernel of a decoding step of a single sequence."""

import os
import subprocess
import sys

import pytest
import torch

from vl2.model.linear import Linear, lie_together
from vl2.ops.experts.mixture import add_up
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.linear import MOST_JOINED_ROWS, joined
from vl2.ops.linear import multiply as reference

kernel = pytest.importorskip("vl2.ops.single_row.kernel", reason="Triton is not installed")
expert_kernel = pytest.importorskip("vl2.ops.experts.kernel")
experts_of_one = pytest.importorskip("vl2.ops.experts.kernel_one")
Tile = pytest.importorskip("vl2.ops.single_row.kernel_common").Tile


def draw(out_width: int, in_width: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(out_width)
    return (torch.randn(*shape, device=device).to(dtype) for shape in ((1, in_width), (out_width, in_width)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("out_width", "in_width"), [(1, 8), (21, 100), (40, kernel.TILES[16].block_k + 72)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_it_is_the_exact_product_rounded_once(out_width, in_width, dtype, has_bias, device):
    """However many programs the rows of the matrix take, and in however many pieces the row is taken."""
    x, weight = draw(out_width, in_width, dtype, device)
    bias = torch.randn(out_width, device=device).to(dtype) if has_bias else None
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    out = kernel.linear(x, weight, bias)
    assert out.shape == (1, out_width) and out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, atol=1e-3, rtol=torch.finfo(dtype).eps)


def test_two_matrices_in_one_launch_have_the_bits_of_each_alone(device):
    x, first = draw(21, 100, torch.bfloat16, device)
    second = first[:5] * 2
    for out, weight in zip(kernel.linear_both(x, first, second), (first, second), strict=True):
        assert torch.equal(out, kernel.linear(x, weight))


def test_few_rows_take_two_matrices_that_lie_together_as_one(device):
    linears = [Linear(100, width, dtype=torch.float32, device=device) for width in (5, 21)]
    lie_together(*linears)
    first, second = (torch.nn.init.normal_(linear.weight) for linear in linears)
    assert torch.equal(joined(first, second), torch.cat((first, second))) and joined(second, first) is None
    for rows, are_columns in ((2, True), (MOST_JOINED_ROWS + 1, False)):
        x = torch.randn(rows, 100, device=device)
        outs = kernel.linear_both(x, first, second)
        assert (outs[1].stride(0) == 26) == are_columns
        for out, weight in zip(outs, (first, second), strict=True):
            torch.testing.assert_close(out, reference(x, weight))


def test_what_float16_cannot_hold_is_its_largest_number(device):
    x, weight = (torch.full(shape, 300.0, dtype=torch.float16, device=device) for shape in ((1, 64), (3, 64)))
    assert kernel.linear(x, weight).tolist() == [[65504.0] * 3]


@pytest.mark.parametrize("rows", [0, 2])
def test_other_numbers_of_rows_are_cublas_work(rows, device):
    _, weight = draw(21, 100, torch.bfloat16, device)
    x = torch.randn(rows, 100, device=device).bfloat16()
    assert torch.equal(kernel.linear(x, weight), reference(x, weight))
    assert all(torch.equal(out, reference(x, weight)) for out in kernel.linear_both(x, weight, weight))


@pytest.mark.parametrize("num_shared", [0, 2])
@pytest.mark.parametrize(("width", "inner"), [(40, 24), (150, 140)])
def test_one_token_at_its_experts(device, width, inner, num_shared, monkeypatch):
    """As experts of many tokens have it, in one turn and in two; shared experts come last in the mixture."""
    torch.manual_seed(width)
    monkeypatch.setitem(experts_of_one.TILES, 16, (Tile(16, 128, 4), Tile(16, 128, 4)))

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, device=device) * 0.1).half()

    shared = (draw(2 * num_shared * inner, width), draw(width, num_shared * inner)) if num_shared else (None, None)
    experts = ExpertWeights(draw(6, 2 * inner, width), draw(6, width, inner), *shared)
    x, ids, weights = draw(1, width), torch.tensor([[4, 1]], device=device), torch.tensor([[0.7, 0.2]], device=device)
    mixture = experts_of_one.mix_single(x, ids.int(), weights, experts, num_shared)
    assert mixture.num_active == 2 + num_shared and len(mixture) == 1
    expected = expert_kernel.mix_sorted(x, ids.int(), weights, experts, expert_kernel.FEW)
    torch.testing.assert_close(mixture.results, expected.results, atol=2e-3, rtol=2e-3)
    assert torch.equal(add_up(expert_kernel.mix_experts(x, ids.int(), weights, experts)), add_up(mixture))


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vl2.ops.single_row.kernel import _multiply

constants = dict(HAS_BIAS=True, STEP=128, BITS=16, GROUP_STEPS=1, BLOCK_N=8, BLOCK_S=16, HAS_ASM=True, CHAINED=True)
ANY = ("out_width", "second_width", "num_tiles")  # not specialised
types = dict.fromkeys(_multiply.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
pointers = ("x", "codes", "scales", "bias", "out", "second_codes", "second_scales", "second_out")
types |= dict.fromkeys(pointers, "*bf16")
aligned = [(i,) for i, name in enumerate(types) if name not in (*constants, *ANY)]
source = ASTSource(_multiply, types, constants, {place: [["tt.divisibility", 16]] for place in aligned})
before, _, after = triton.compile(
    source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=8, launch_pdl=True)
).asm["ptx"].partition("griddepcontrol.wait")
print(before.count("ld.global"), before.count("ld.global.v4.b32"), after.count("griddepcontrol"))
"""


@pytest.mark.cpu_only
def test_on_hopper_the_matrix_is_asked_for_before_the_row_is_there():
    """A thread's 64 numbers in eight loads of 16 bytes, and nothing else, come before the wait."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", "import triton\n" + COMPILE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["8", "8", "0"]
