"""The library's products and router, in every build that this processor can run, against torch."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from tests.ops.native.builds import every_bfloat16_build, every_build, fastest, needs_library, needs_packing
from vl2.core.model_config import SCORING_FUNCS, TOPK_METHODS, MoEConfig
from vl2.core.quantization import WeightScheme
from vl2.ops.gate.native import describe_choice
from vl2.ops.gate.reference import route
from vl2.ops.linear import can_pack, pack
from vl2.ops.native import structures
from vl2.ops.native.builds import load
from vl2.ops.native.matrices import describe, describe_quantized, packed_layout
from vl2.ops.quantized_weight import torch_layout
from vl2.ops.quantized_weight.weight import QuantizedWeight

pytestmark = [pytest.mark.cpu_only, needs_library]
SHAPES = [(64, 64), (100, 90), (160, 512), (1, 7), (131, 257)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def multiply(
    library: Path, weight: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None = None, threads: int = 2
) -> torch.Tensor:
    matrix = describe(weight, bias)
    assert matrix is not None
    return run_product(library, matrix, x, threads)


def run_product(library: Path, matrix: structures.Matrix, x: torch.Tensor, threads: int = 2) -> torch.Tensor:
    out = torch.full((len(x), matrix.out_width), float("nan"))
    run = ctypes.CDLL(str(library)).vl2_multiply
    rows = ctypes.c_int64(len(x))
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, out))
    x_pointer, out_pointer = pointers
    assert run(ctypes.byref(matrix), x_pointer, rows, out_pointer, ctypes.c_int32(threads)) == 0
    return out


@every_build
@pytest.mark.parametrize("layout", ["float32", "bfloat16", pytest.param("packed", marks=needs_packing)])
@pytest.mark.parametrize(("out_width", "in_width"), SHAPES)
def test_products_of_a_few_rows_keep_float32_sums(library: Path, layout: str, out_width: int, in_width: int):
    dtype = torch.float32 if layout == "float32" else torch.bfloat16
    weight, bias = torch.randn(out_width, in_width).to(dtype), torch.randn(out_width)
    lying = pack(weight) if layout == "packed" else weight
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 17, 40):
        x = torch.randn(rows, in_width).to(dtype).float()
        expected = x.double() @ weight.double().T + bias
        got = multiply(library, lying, x, bias)
        assert torch.allclose(got.double(), expected, atol=2e-6 * in_width, rtol=1e-5)


@every_build
def test_a_bfloat16_weight_meets_rows_rounded_to_bfloat16(library: Path):
    weight, x = torch.randn(33, 66).bfloat16(), torch.randn(2, 66)
    assert torch.equal(multiply(library, weight, x), multiply(library, weight, x.bfloat16().float()))


@every_build
def test_a_row_has_the_same_bits_alone_and_among_others_on_any_number_of_threads(library: Path):
    for weight in (torch.randn(200, 130), torch.randn(200, 130).bfloat16(), torch.randn(200, 128).bfloat16()):
        lying = pack(weight) if can_pack(weight) and weight.shape[1] == 128 else weight
        x = torch.randn(40, weight.shape[1])
        together = multiply(library, lying, x, threads=1)
        for rows in (1, 3, 8, 13, 17, 33):
            assert torch.equal(multiply(library, lying, x[:rows], threads=4), together[:rows])


def test_threads_that_come_and_go_lose_no_piece():
    """As many threads as a busy machine would never run at once; what is not written stays NaN."""
    weight, x = torch.randn(640, 16), torch.randn(1, 16)
    expected = multiply(fastest(), weight, x, threads=1)
    assert all(torch.equal(multiply(fastest(), weight, x, threads=8), expected) for _ in range(200))


def test_there_may_be_more_pieces_than_the_threads_count_in_16_bits():
    weight, x = torch.randn(32 * 2**16 + 5, 1), torch.randn(1, 1)
    assert torch.equal(multiply(fastest(), weight, x), x @ weight.T)


@needs_packing
def test_the_packed_layout_is_found_by_looking():
    found = packed_layout(100, 90, torch.get_num_threads())
    assert found is not None and found[0] % 16 == 0 and found[1] >= 90


@needs_packing
def test_a_layout_that_is_not_known_is_not_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vl2.ops.native.matrices.BLOCKS", (56,))
    weight = torch.zeros(57, 31, dtype=torch.bfloat16)  # a shape that no other test has asked for
    assert describe(pack(weight)) is None


FEW_BITS = [
    (WeightScheme(4, 32), 64, 96), (WeightScheme(4, 64), 64, 192), (WeightScheme(4, 128), 192, 256),
    (WeightScheme(4, 256), 64, 512), (WeightScheme(8, None), 67, 131), (WeightScheme(8, None), 30, 256),
]  # fmt: skip
few_bits = pytest.mark.parametrize(("scheme", "out_width", "in_width"), FEW_BITS, ids=str)


def draw_few_bits(scheme: WeightScheme, out_width: int, in_width: int, dtype: torch.dtype) -> QuantizedWeight:
    weight = QuantizedWeight(*torch_layout.empty((out_width, in_width), scheme, dtype, "cpu"), scheme, in_width)
    most = 1 << scheme.bits - 1
    codes = torch.randint(-most, most, (out_width, in_width), dtype=torch.int8)
    torch_layout.store(weight, codes, torch.rand(out_width, scheme.num_groups(in_width)).to(dtype) / most)
    return weight


def describe_few_bits(weight: QuantizedWeight, bias: torch.Tensor | None = None) -> structures.Matrix:
    matrix = describe_quantized(weight, bias)
    if matrix is None:
        pytest.skip("PyTorch packs them otherwise on this processor")
    return matrix


@every_build
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@few_bits
def test_weights_in_few_bits_are_multiplied_as_they_lie(
    library: Path, scheme: WeightScheme, out_width: int, in_width: int, dtype: torch.dtype
):
    weight, bias = draw_few_bits(scheme, out_width, in_width, dtype), torch.randn(out_width)
    matrix, whole = describe_few_bits(weight, bias), torch_layout.dequantize(weight).double()
    for rows in (1, 2, 3, 4, 7, 17):
        x = torch.randn(rows, in_width)
        got = run_product(library, matrix, x).double()
        tolerance = 4e-3 if dtype == torch.bfloat16 else 1e-5  # dequantize rounds to the scales' type
        assert torch.allclose(got, x.double() @ whole.T + bias, atol=tolerance * in_width**0.5, rtol=1e-5)


@every_bfloat16_build
@few_bits
def test_rows_keep_16_bits_beside_weights_in_few(library: Path, scheme: WeightScheme, out_width: int, in_width: int):
    """Scales that are powers of two: what is dequantised is the weight."""
    weight, x = draw_few_bits(scheme, out_width, in_width, torch.bfloat16), torch.randn(6, in_width)
    weight.scales.copy_(torch.exp2(torch.randint(-3, 3, weight.scales.shape)))
    if scheme.bits == 4:
        weight.scales[..., 1] = 0.0
    x[3, 5], x[4, in_width - 1] = 3000.0, 1e-20
    expected = x.double() @ torch_layout.dequantize(weight).double().T
    got = run_product(library, describe_few_bits(weight), x).double()
    errors = (got - expected).norm(dim=1) / expected.norm(dim=1)
    assert errors.max() < 2e-4  # of rows in bfloat16: 2e-3


@every_build
@few_bits
def test_a_row_beside_weights_in_few_bits_has_the_same_bits_alone_and_among_others(
    library: Path, scheme: WeightScheme, out_width: int, in_width: int
):
    weight, x = draw_few_bits(scheme, out_width, in_width, torch.bfloat16), torch.randn(40, in_width)
    matrix = describe_few_bits(weight)
    together = run_product(library, matrix, x)
    for rows in (1, 2, 3, 4, 5, 8, 13, 17, 33):
        assert torch.equal(run_product(library, matrix, x[:rows]), together[:rows])


@every_build
@few_bits
def test_what_is_no_number_stays_so_beside_weights_in_few_bits(
    library: Path, scheme: WeightScheme, out_width: int, in_width: int
):
    weight, x = draw_few_bits(scheme, out_width, in_width, torch.bfloat16), torch.randn(7, in_width)
    x[0, 3], x[1, -1], x[2] = float("nan"), float("inf"), 0.0
    got = run_product(library, describe_few_bits(weight), x)
    assert got[0].isnan().all() and not got[1].isfinite().any()
    assert (got[2] == 0.0).all() and got[3:].isfinite().all()


@needs_packing
def test_a_weight_that_was_packed_for_other_threads_is_not_misread():
    """oneDNN cuts 96 columns into one block and a half, or into two equal ones, by the number of threads."""
    weight = torch.randn(96, 64).bfloat16()
    x, before = torch.randn(2, 64).bfloat16().float(), torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            lying = pack(weight)
            assert torch.allclose(multiply(fastest(), lying, x), x @ weight.float().T, atol=1e-3)
            torch.set_num_threads(4 - threads)
            other = describe(lying)
            assert other is None or torch.allclose(multiply(fastest(), lying, x), x @ weight.float().T, atol=1e-3)
    finally:
        torch.set_num_threads(before)


def moe(topk_method: str, scoring_func: str) -> MoEConfig:
    return MoEConfig(
        num_experts=12,
        num_active=5,
        expert_width=8,
        shared_width=0,
        topk_method=topk_method,
        scoring_func=scoring_func,
        num_groups=1 if topk_method == "greedy" else 4,
        num_active_groups=1 if topk_method == "greedy" else 2,
        norm_topk_prob=scoring_func == "sigmoid",
        routed_scaling_factor=2.5,
        first_dense_layers=0,
        layer_freq=1,
    )


@every_build
@pytest.mark.parametrize("scoring_func", SCORING_FUNCS)
@pytest.mark.parametrize("topk_method", TOPK_METHODS)
def test_the_router_chooses_as_the_reference_does(library: Path, topk_method: str, scoring_func: str):
    config = moe(topk_method, scoring_func)
    x = torch.randn(200, 12)
    x[::3] = x[::3].round()  # ties, which go to the lower id
    x[0] = 0.0
    bias = torch.randn(12).round() if topk_method == "noaux_tc" else None
    model = describe_choice(config)
    expected_ids, expected_weights = route(x, torch.eye(12), bias, config)
    run = load(library).vl2_route
    for row, ids, weights in zip(x, expected_ids, expected_weights, strict=True):
        scores, spare = row.clone(), torch.empty(24)
        got_ids, got_weights = torch.empty(5, dtype=torch.int32), torch.empty(5)
        tensors = (scores, spare, got_ids, got_weights)
        bias_pointer = ctypes.c_void_p(None if bias is None else bias.data_ptr())
        run(ctypes.byref(model), bias_pointer, *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors))
        assert got_ids.tolist() == ids.tolist()
        assert torch.allclose(got_weights, weights, rtol=1e-5)
