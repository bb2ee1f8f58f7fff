"""Products with quantised weights: kernels and references against dequantised weights in float64."""

import pytest
import torch

from vl2.core.quantization import WeightScheme
from vl2.ops.experts import reference as dense_experts
from vl2.ops.experts.kernel_common import Tile
from vl2.ops.experts.mixture import add_up
from vl2.ops.float8 import reference as float8_reference
from vl2.ops.float8.kernel import round_rows
from vl2.ops.quantized_experts import kernel as experts_kernel
from vl2.ops.quantized_experts import kernel_float8, kernel_held
from vl2.ops.quantized_experts import reference as experts_reference
from vl2.ops.quantized_experts.kernel_few import Tile as FewTile
from vl2.ops.quantized_experts.kernel_few import mix_few
from vl2.ops.quantized_experts.kernel_many import mix_many_float8
from vl2.ops.quantized_experts.weights import QuantizedExperts
from vl2.ops.quantized_linear import kernel, kernel_few, kernel_logits, reference
from vl2.ops.quantized_linear import kernel_held as linear_held
from vl2.ops.quantized_weight import torch_layout, triton_layout
from vl2.ops.quantized_weight.codes import dequantize_codes, round_to_nearest
from vl2.ops.quantized_weight.weight import QuantizedLayout, QuantizedWeight
from vl2.ops.single_row.kernel import HEAD_TILE, multiply_row
from vl2.ops.single_row.kernel_common import Tile as RowTile

INT4, INT4_64, INT8 = WeightScheme(4, 128), WeightScheme(4, 64), WeightScheme(8, None)
INT8_128, FP8 = WeightScheme(8, 128), WeightScheme(8, None, is_float=True)
CPU = torch.device("cpu")


def quantize(
    weight: torch.Tensor, scheme: WeightScheme, layout: QuantizedLayout, dtype: torch.dtype, device: torch.device
) -> tuple[QuantizedWeight, torch.Tensor]:
    """(the weight in a backend's layout, what it stands for in float64). [(E,) N, K]."""
    codes, scales = round_to_nearest(weight, scheme, dtype)
    shape = tuple(weight.shape)
    held = QuantizedWeight(*layout.empty(shape, scheme, dtype, device), scheme, shape[-1])
    parts = [held[e] for e in range(shape[0])] if len(shape) == 3 else [held]
    for part, *own in zip(parts, codes.view(-1, *shape[-2:]), scales.view(-1, *scales.shape[-2:]), strict=True):
        layout.store(part, *own)
    return held, dequantize_codes(codes, scales.double()).to(device)


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()
"""Of kernels: Triton's interpreter cuts bfloat16 off instead of rounding it."""
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


@pytest.mark.parametrize("scheme", [INT4, INT4_64, INT8, INT8_128, FP8], ids=str)
@pytest.mark.parametrize("layout", [triton_layout, torch_layout], ids=lambda layout: layout.__name__.split(".")[-1])
def test_a_layout_gives_back_the_bits_it_was_given(layout, scheme: WeightScheme):
    if not layout.holds(scheme, 128, 256):
        assert layout is torch_layout and scheme in (INT8_128, FP8)
        return
    weight = torch.randn(128, 256)
    codes, scales = round_to_nearest(weight, scheme, torch.bfloat16)
    held = QuantizedWeight(*layout.empty((128, 256), scheme, torch.bfloat16, CPU), scheme, 256)
    layout.store(held.rows(64, 64), codes[64:], scales[64:])  # a part by itself, as stacked matrices are loaded
    layout.store(held.rows(0, 64), codes[:64], scales[:64])
    assert torch.equal(layout.dequantize(held), dequantize_codes(codes, scales))


@pytest.mark.parametrize("scheme", [INT4, INT8, FP8], ids=str)
@pytest.mark.parametrize("layout", [triton_layout, torch_layout], ids=lambda layout: layout.__name__.split(".")[-1])
def test_drawn_weights_have_no_mean(layout, scheme: WeightScheme):
    """A mean of a tenth of their deviation is enough for all tokens to choose the same experts."""
    if not layout.holds(scheme, 512, 512):
        return
    held = QuantizedWeight(*layout.empty((512, 512), scheme, torch.float32, CPU), scheme, 512)
    layout.draw(held, 0.02, torch.Generator().manual_seed(0))
    drawn = layout.dequantize(held)
    assert abs(float(drawn.mean())) < 0.01 * 0.02  # five times what chance leaves
    assert float(drawn.std()) == pytest.approx(0.02, rel=0.01)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scheme", [INT4, INT4_64, INT8, INT8_128, FP8], ids=str)
@pytest.mark.parametrize("num_rows", [1, 40])
def test_linear_kernel(device: torch.device, num_rows: int, scheme: WeightScheme, dtype: torch.dtype):
    torch.manual_seed(num_rows)
    weight, exact = quantize(torch.randn(70, 256), scheme, triton_layout, dtype, device)
    wide = torch.randn(num_rows, 300, device=device).to(dtype)
    x, bias = wide[:, :256], torch.randn(70, device=device).to(dtype)  # rows that are not side by side
    expected = x.double() @ exact.T
    for tile in (kernel.FEW, kernel.SOME, kernel.MANY) if num_rows == 40 else (kernel.FEW,):
        if scheme is FP8 and tile.scales_first:  # many rows become float8 too, see below
            continue
        if dtype == torch.float32:
            tile = kernel.FLOAT32
        out = torch.full((num_rows, 70), float("nan"), device=device, dtype=dtype)
        kernel.multiply(x, weight, None, out, tile)
        assert error(out, expected) < TOLERANCE[dtype] * (2 if tile.scales_first else 1)
    with_bias = kernel.quantized_linear(x.view(1, num_rows, 256), weight, bias)
    assert error(with_bias[0], expected + bias.double()) < TOLERANCE[dtype]


def test_float8_widths_that_are_no_multiple_of_128(device: torch.device):
    """Steps of 64 inputs then, as in the dense layer of Tiny and Small."""
    dtype = DTYPES[-1]
    weight, exact = quantize(torch.randn(32, 192), FP8, triton_layout, dtype, device)
    x = torch.randn(5, 192, device=device).to(dtype)
    assert triton_layout.holds(FP8, 32, 192) and not triton_layout.holds(FP8, 32, 200)
    assert error(kernel.quantized_linear(x, weight), x.double() @ exact.T) < TOLERANCE[dtype]


@pytest.mark.parametrize("scheme", [INT4, INT4_64, INT8, FP8], ids=str)
def test_few_rows_whose_inputs_the_warps_of_a_program_share_out(device: torch.device, scheme: WeightScheme):
    """Steps that are no multiple of the warps, rows and outputs no multiple of the tile's; the same bits each time."""
    dtype = DTYPES[-1]
    weight, exact = quantize(torch.randn(70, 640), scheme, triton_layout, dtype, device)
    x, bias = torch.randn(11, 640, device=device).to(dtype), torch.randn(70, device=device).to(dtype)
    for tile in (kernel_few.Tile(8, 16, 8, 2), kernel_few.Tile(16, 32, 4, 2)):
        outs = torch.full((2, 11, 70), float("nan"), device=device, dtype=dtype)
        for out in outs:
            kernel_few.multiply_few(x, bias, [(weight, out)], tile)
        assert torch.equal(*outs)
        assert error(outs[0], x.double() @ exact.T + bias.double()) < TOLERANCE[dtype]


@pytest.mark.parametrize("scheme", [INT4, INT4_64, INT8, INT8_128, FP8], ids=str)
@pytest.mark.parametrize("tile", [None, RowTile(16, 128, 4), RowTile(8, 512, 2)])
def test_one_row_whose_codes_are_there_before_it(device: torch.device, tile: RowTile | None, scheme: WeightScheme):
    """Outputs and steps that no tile divides; a program takes the inputs in one, two or several turns."""
    dtype = DTYPES[-1]
    (weight, exact), (other, other_exact) = (
        quantize(torch.randn(width, 640), scheme, triton_layout, dtype, device) for width in (70, 9)
    )
    x, bias = torch.randn(1, 640, device=device).to(dtype), torch.randn(70, device=device).to(dtype)
    (out,) = multiply_row(x, [weight], bias, tile)
    assert error(out, x.double() @ exact.T + bias.double()) < TOLERANCE[dtype]
    for out, expected in zip(multiply_row(x, [weight, other], None, tile), (exact, other_exact), strict=True):
        assert error(out, x.double() @ expected.T) < TOLERANCE[dtype]
    assert torch.equal(kernel.quantized_linear(x, weight, bias), multiply_row(x, [weight], bias)[0])


HELD_TILES = [(INT4, 640, 512), (INT4, 384, 64), (INT4_64, 320, 32), (FP8, 640, 256), (FP8, 192, 512)]
"""Steps that are no power of two, all at once or in several turns."""


@pytest.mark.parametrize(("scheme", "width", "words"), HELD_TILES, ids=str)
@pytest.mark.parametrize("num_rows", [1, 5])
def test_few_rows_whose_codes_are_held_in_registers(
    device, num_rows: int, scheme: WeightScheme, width: int, words: int
):
    """Outputs that no tile divides; two matrices give the bits of each alone."""
    dtype, tile = DTYPES[-1], linear_held.Tile(32, words, 2)
    (weight, exact), (other, other_exact) = (
        quantize(torch.randn(outputs, width), scheme, triton_layout, dtype, device) for outputs in (70, 9)
    )
    wide, bias = torch.randn(num_rows, 700, device=device).to(dtype), torch.randn(70, device=device).to(dtype)
    x = wide[:, :width]
    out, alone, second = (
        torch.full((num_rows, outputs), float("nan"), device=device, dtype=dtype) for outputs in (70, 70, 9)
    )
    linear_held.multiply_few(x, bias, [(weight, out)], tile)
    assert error(out, x.double() @ exact.T + bias.double()) < TOLERANCE[dtype]
    linear_held.multiply_few(x, None, [(weight, alone)], tile)
    linear_held.multiply_few(x, None, [(weight, out), (other, second)], tile)
    assert torch.equal(out, alone)
    assert error(second, x.double() @ other_exact.T) < TOLERANCE[dtype]


@pytest.mark.parametrize("scheme", [INT4, FP8], ids=str)
@pytest.mark.parametrize("num_rows", [2, 8])
def test_rows_to_be_held_are_held(
    device: torch.device, num_rows: int, scheme: WeightScheme, monkeypatch: pytest.MonkeyPatch
):
    dtype = DTYPES[-1]
    pairs = [quantize(torch.randn(width, 256), scheme, triton_layout, dtype, device) for width in (70, 40)]
    x = torch.randn(num_rows, 256, device=device).to(dtype)
    expected = [x.double() @ exact.T for _, exact in pairs]
    monkeypatch.setattr(kernel, "multiply_row", None)
    monkeypatch.setattr(kernel_few, "multiply_few", None)
    outs = kernel.quantized_linear_both(x, pairs[0][0], pairs[1][0])
    for out, (weight, _), exact in zip(outs, pairs, expected, strict=True):
        assert error(out, exact) < TOLERANCE[dtype]
        assert torch.equal(kernel.quantized_linear(x, weight), out)


@pytest.mark.parametrize("scheme", [INT4, INT8_128], ids=str)
@pytest.mark.parametrize("num_rows", [1, 8, 9])
def test_two_matrices_at_once_give_the_bits_of_one_after_the_other(device, num_rows: int, scheme: WeightScheme):
    dtype = DTYPES[-1]
    weights = [quantize(torch.randn(width, 256), scheme, triton_layout, dtype, device)[0] for width in (70, 40)]
    x = torch.randn(num_rows, 256, device=device).to(dtype)
    for both, weight in zip(kernel.quantized_linear_both(x, *weights), weights, strict=True):
        assert torch.equal(both, kernel.quantized_linear(x, weight))


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Rows as the kernel rounds them, in float64."""
    codes, scales = round_rows(x)
    return codes.double() * scales.double().unsqueeze(1)


@pytest.mark.parametrize("width", [70, 5000])
def test_rows_in_float8(device: torch.device, width: int):
    x = torch.randn(7, 6000, device=device)[:, :width]
    x[3] = 0.0
    x[5] *= 1e4
    codes, scales = round_rows(x)
    expected, expected_scales = float8_reference.round_rows(x)
    torch.testing.assert_close(scales, expected_scales)
    assert float((codes.float() != expected.float()).float().mean()) < 1e-3  # a scale's last bit may decide
    assert error(rounded(x), x.double()) < 0.03
    assert not codes[3].float().any() and codes[5].float().abs().max() == 448


def test_many_rows_are_multiplied_in_float8(device: torch.device):
    dtype = DTYPES[-1]
    weight, exact = quantize(torch.randn(3, 48, 256), FP8, triton_layout, dtype, device)
    wide = torch.randn(70, 300, device=device).to(dtype)
    x, bias = wide[:, :256], torch.randn(48, device=device).to(dtype)
    out = kernel.quantized_linear(x, weight[1], bias)
    assert out.dtype == dtype
    assert error(out, rounded(x) @ exact[1].T + bias.double()) < 2 * TOLERANCE[torch.bfloat16]


def test_programs_that_share_a_tile_add_in_order_and_leave_nothing_behind(device: torch.device):
    weight, exact = quantize(torch.randn(64, 2048), INT4, triton_layout, torch.float32, device)
    x = torch.randn(3, 2048, device=device)
    tile = kernel.Tile(16, 32, 8, False, 4, 2)
    outs = []
    for _ in range(2):
        outs.append(torch.empty(3, 64, device=device))
        kernel.multiply(x, weight, None, outs[-1], tile)
    assert torch.equal(*outs)
    assert error(outs[0], x.double() @ exact.T) < 1e-6
    assert not kernel.arrival_counters(x.device).any()


def test_many_rows_go_through_the_matrix_written_out(device: torch.device, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernel, "DEQUANTIZE_ROWS", 3)
    weight, exact = quantize(torch.randn(3, 10, 256), INT4_64, triton_layout, torch.float16, device)
    written = kernel.dequantize(weight, torch.float16)
    assert torch.equal(written, torch.stack([triton_layout.dequantize(weight[e]) for e in range(3)]))
    x = torch.randn(4, 256, device=device).half()
    assert error(kernel.quantized_linear(x, weight[1]), x.double() @ exact[1].T) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scheme", [INT4, INT4_64, INT8], ids=str)
def test_linear_on_a_cpu_gives_a_row_the_same_bits_in_any_number(scheme: WeightScheme, dtype: torch.dtype):
    weight, exact = quantize(torch.randn(128, 256), scheme, torch_layout, dtype, CPU)
    x = torch.randn(40, 256).to(dtype)
    whole = reference.quantized_linear(x, weight)
    few = reference.quantized_linear(x[:9], weight)
    assert error(whole, x.double() @ exact.T) < 2 * TOLERANCE[dtype]
    assert error(few, x[:9].double() @ exact.T) < 2 * TOLERANCE[dtype]
    assert torch.equal(reference.quantized_linear(x[4:5], weight), few[4:5])


@pytest.mark.parametrize("num_rows", [0, 1, 3, 9, 20, 50, 130])
def test_logits_are_float32(device: torch.device, num_rows: int):
    """Not rounded to the hidden states' type; scales in float32, and codes of 8 bits by rows."""
    hidden = torch.randn(num_rows, 128).half()
    for run, layout, where in ((kernel, triton_layout, device), (reference, torch_layout, CPU)):
        weight, exact = quantize(torch.randn(192, 128), INT8, layout, torch.float32, where)
        for is_exact in (True, False):
            logits = run.quantized_logits(hidden.to(where), weight, is_exact)
            assert logits.dtype == torch.float32 and logits.shape == (num_rows, 192)
            assert not num_rows or error(logits, hidden.to(where).double() @ exact.T) < 2e-6


@pytest.mark.parametrize("scheme", [INT8, FP8], ids=str)
def test_logits_of_tiles_that_divide_nothing(device: torch.device, scheme: WeightScheme):
    """Rows beside others in memory, inputs that are no multiple of 128."""
    weight, exact = quantize(torch.randn(200, 192), scheme, triton_layout, torch.float32, device)
    x = torch.randn(40, 400, device=device).half()[:, :192]
    out = torch.full((40, 200), float("nan"), device=device)
    kernel_logits.multiply_logits(x, weight, out, kernel_logits.Tile(16, 64, 128, 4, 3))
    assert error(out, x.double() @ exact.T) < 2e-6
    own = multiply_row(x[:1], [weight], tile=HEAD_TILE, out_dtype=torch.float32)[0]
    assert torch.equal(kernel.quantized_logits(x[:1], weight), own)


@pytest.mark.parametrize(("num_rows", "block_m"), [(2, 8), (8, 8), (9, 16), (32, 32), (33, 64), (65, 128), (500, 128)])
def test_a_tile_of_logits_has_all_rows_or_many(num_rows: int, block_m: int):
    assert kernel_logits.choose_tile(num_rows).block_m == block_m


EXPERTS, ACTIVE, WIDTH, INNER = 4, 2, 256, 128


def experts_of(
    scheme: WeightScheme,
    layout: QuantizedLayout,
    dtype: torch.dtype,
    device: torch.device,
    num_shared: int,
    width: int = WIDTH,
    inner: int = INNER,
) -> tuple[QuantizedExperts, torch.Tensor, torch.Tensor]:
    total = EXPERTS + num_shared
    gate_up, exact_up = quantize(torch.randn(total, 2 * inner, width) / 16, scheme, layout, dtype, device)
    down, exact_down = quantize(torch.randn(total, width, inner) / 11, scheme, layout, dtype, device)
    return QuantizedExperts(gate_up, down, num_shared), exact_up, exact_down


def mix_exactly(x, ids, weights, gate_up, down, num_shared: int) -> torch.Tensor:
    """float64; shared experts as choices of weight 1."""
    shared = torch.arange(EXPERTS, EXPERTS + num_shared, device=ids.device).expand(len(x), -1)
    ids = torch.cat((ids.long(), shared), 1)
    weights = torch.cat((weights.double(), torch.ones(len(x), num_shared, device=x.device).double()), 1)
    return dense_experts.routed_experts(x.double(), ids, weights, gate_up, down).double()


def routes(num_tokens: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.stack([torch.randperm(EXPERTS)[:ACTIVE] for _ in range(num_tokens)])
    return ids.to(device), torch.rand(num_tokens, ACTIVE, device=device)


def limit_of(dtype: torch.dtype) -> float:
    """A row goes through three roundings to the dtype."""
    return 4 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "scheme", "num_shared"),
    [(1, INT4, 2), (1, INT4, 0), (5, INT4, 1), (3, INT4_64, 0), (3, INT8, 2), (1, FP8, 2), (5, FP8, 0)],
    ids=str,
)
def test_experts_kernel(device: torch.device, num_tokens: int, scheme: WeightScheme, num_shared: int, dtype):
    """Float8 weights with rows of 32 bits, or one of 16; more of them are rounded too, see below."""
    if scheme is FP8 and dtype != torch.float32 and num_tokens > 1:
        return
    torch.manual_seed(num_tokens)
    experts, *exact = experts_of(scheme, triton_layout, dtype, device, num_shared)
    x, (ids, weights) = torch.randn(num_tokens, WIDTH, device=device).to(dtype), routes(num_tokens, device)
    out = add_up(experts_kernel.mix_quantized_experts(x, ids.int(), weights, experts))
    assert error(out, mix_exactly(x, ids, weights, *exact, num_shared)) < limit_of(dtype)


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_experts_whose_two_matrices_have_other_bits(device: torch.device, num_tokens: int):
    """`down` is often kept in 8 bits where gate and up have 4."""
    dtype = DTYPES[-1]
    (four, exact_up, _), (eight, _, exact_down) = (
        experts_of(scheme, triton_layout, dtype, device, 1) for scheme in (INT4, INT8)
    )
    experts = QuantizedExperts(four.gate_up, eight.down, 1)
    x, (ids, weights) = torch.randn(num_tokens, WIDTH, device=device).to(dtype), routes(num_tokens, device)
    out = add_up(experts_kernel.mix_quantized_experts(x, ids.int(), weights, experts))
    assert error(out, mix_exactly(x, ids, weights, exact_up, exact_down, 1)) < limit_of(dtype)


@pytest.mark.parametrize("scheme", [INT4, INT8], ids=str)
def test_experts_whose_inputs_the_warps_of_a_program_share_out(device: torch.device, scheme: WeightScheme):
    """Steps, outputs and rows that are no multiples of the warps and of the tiles."""
    dtype = DTYPES[-1]
    experts, *exact = experts_of(scheme, triton_layout, dtype, device, 1, 384, 128)
    wide, (ids, weights) = torch.randn(9, 400, device=device).to(dtype), routes(9, device)
    x = wide[:, :384]
    out = add_up(mix_few(x, ids.int(), weights, experts, FewTile(8, 64, 256, 2, 4, 2)))
    assert error(out, mix_exactly(x, ids, weights, *exact, 1)) < limit_of(dtype)


@pytest.mark.parametrize(("scheme", "width", "words"), [held for held in HELD_TILES if held[0].bits == 4], ids=str)
@pytest.mark.parametrize(("num_tokens", "num_shared"), [(1, 0), (1, 2), (5, 1)])
def test_experts_whose_codes_are_held_in_registers(
    device: torch.device, num_tokens: int, num_shared: int, scheme: WeightScheme, width: int, words: int
):
    """Outputs that no tile divides."""
    dtype, inner, tile = DTYPES[-1], 3 * (scheme.group_size or 64), kernel_held.Tile(256, 256, words, 2)
    torch.manual_seed(num_tokens)
    experts, *exact = experts_of(scheme, triton_layout, dtype, device, num_shared, width, inner)
    wide, (ids, weights) = torch.randn(num_tokens, 700, device=device).to(dtype), routes(num_tokens, device)
    x = wide[:, :width]
    out, again = (add_up(kernel_held.mix_held(x, ids.int(), weights, experts, tile)) for _ in range(2))
    assert torch.equal(out, again)
    assert error(out, mix_exactly(x, ids, weights, *exact, num_shared)) < limit_of(dtype)


@pytest.mark.parametrize("num_tokens", [1, 2])
def test_tokens_to_be_held_are_held(device: torch.device, num_tokens: int, monkeypatch: pytest.MonkeyPatch):
    dtype = DTYPES[-1]
    experts, *_ = experts_of(INT4, triton_layout, dtype, device, 2)
    x, (ids, weights) = torch.randn(num_tokens, WIDTH, device=device).to(dtype), routes(num_tokens, device)
    held = add_up(kernel_held.mix_held(x, ids.int(), weights, experts))
    monkeypatch.setattr(experts_kernel, "mix_few", None)
    assert torch.equal(add_up(experts_kernel.mix_quantized_experts(x, ids.int(), weights, experts)), held)


@pytest.mark.parametrize("tile", ["SOME", "MANY"])
def test_experts_kernel_with_tiles_of_many_rows(device: torch.device, tile: str):
    dtype = DTYPES[-1]
    experts, *exact = experts_of(INT4, triton_layout, dtype, device, 1)
    x, (ids, weights) = torch.randn(20, WIDTH, device=device).to(dtype), routes(20, device)
    out = add_up(experts_kernel.mix_with_tile(x, ids.int(), weights, experts, getattr(experts_kernel, tile)))
    assert error(out, mix_exactly(x, ids, weights, *exact, 1)) < limit_of(dtype)


def mix_rounded(x, ids, weights, gate_up, down, span: int) -> torch.Tensor:
    """float64, but rows are rounded to float8 before either product, inner rows in parts of `span` numbers.

    Before that they are rounded to the dtype, operation by operation: it decides how some are rounded to float8.
    """
    expected = torch.zeros(len(x), down.shape[1], dtype=torch.float64, device=x.device)
    for token, row in enumerate(rounded(x)):
        for expert, share in zip(ids[token].tolist(), weights[token].double(), strict=True):
            gate, up = (gate_up[expert] @ row).to(x.dtype).chunk(2)
            hidden = (torch.nn.functional.silu(gate.double()).to(x.dtype).double() * up.double()).to(x.dtype)
            parts = [rounded(part.unsqueeze(0))[0] for part in hidden.split(span)]
            expected[token] += share * (down[expert] @ torch.cat(parts))
    return expected


LAST_BIT = 0.015
"""One in a few products decides how an inner number is rounded to float8."""


@pytest.mark.parametrize("num_shared", [0, 2])
def test_experts_of_many_tokens_are_multiplied_in_float8(device: torch.device, num_shared: int):
    dtype = DTYPES[-1]
    experts, *exact = experts_of(FP8, triton_layout, dtype, device, num_shared)
    x, (ids, weights) = torch.randn(20, WIDTH, device=device).to(dtype), routes(20, device)
    out = add_up(mix_many_float8(x, ids.int(), weights, experts, Tile(32, 64, 128, 64, 128, 4, 2)))
    expected = mix_rounded(x, *experts.with_shared(ids, weights), *exact, span=INNER)
    assert error(out, expected) < LAST_BIT


@pytest.mark.parametrize(("num_tokens", "num_shared"), [(1, 2), (5, 0), (18, 1)])
def test_experts_of_few_tokens_are_multiplied_in_float8(device: torch.device, num_tokens: int, num_shared: int):
    """Widths that no tile divides; a block of 16 rows is not enough for all of an expert's."""
    dtype, width, inner = DTYPES[-1], 208, 192
    experts, *exact = experts_of(FP8, triton_layout, dtype, device, num_shared, width, inner)
    wide, (ids, weights) = torch.randn(num_tokens, 300, device=device).to(dtype), routes(num_tokens, device)
    x = wide[:, :width]
    expected = mix_rounded(x, *experts.with_shared(ids, weights), *exact, span=128)
    tile = kernel_float8.Tile(16, 128, 128, 64, 4, 2)
    out, again = (add_up(kernel_float8.mix_few_float8(x, ids.int(), weights, experts, tile)) for _ in range(2))
    assert torch.equal(out, again)
    assert error(out, expected) < LAST_BIT


def test_a_tile_of_few_float8_rows_is_chosen_by_their_number(device: torch.device):
    """Rounding the rows leaves about 3 % of the exact product, as with many tokens."""
    dtype = DTYPES[-1]
    experts, *exact = experts_of(FP8, triton_layout, dtype, device, 1)
    x, (ids, weights) = torch.randn(20, WIDTH, device=device).to(dtype), routes(20, device)
    few, more = (
        add_up(kernel_float8.mix_few_float8(x, ids.int(), weights, experts, tile))
        for tile in (kernel_float8.FEW, kernel_float8.MORE)
    )
    assert all(error(out, mix_exactly(x, ids, weights, *exact, 1)) < 0.05 for out in (few, more))
    chosen = add_up(experts_kernel.mix_quantized_experts(x, ids.int(), weights, experts))
    assert torch.equal(chosen, few) and kernel_float8.choose_tile(20, 3, 5) is kernel_float8.FEW
    assert kernel_float8.choose_tile(40, 3, 5) is kernel_float8.MORE


def test_experts_written_out_for_many_tokens(device: torch.device, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(experts_kernel, "DEQUANTIZE_TOKENS", 6)
    dtype = DTYPES[-1]
    experts, *exact = experts_of(INT4, triton_layout, dtype, device, 2)
    x, (ids, weights) = torch.randn(6, WIDTH, device=device).to(dtype), routes(6, device)
    out = add_up(experts_kernel.mix_quantized_experts(x, ids.int(), weights, experts))
    assert error(out, mix_exactly(x, ids, weights, *exact, 2)) < limit_of(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 9, 100])
def test_experts_on_a_cpu(num_tokens: int, dtype: torch.dtype):
    torch.manual_seed(num_tokens)
    experts, *exact = experts_of(INT4, torch_layout, dtype, CPU, 2)
    x, (ids, weights) = torch.randn(num_tokens, WIDTH).to(dtype), routes(num_tokens, CPU)
    out = experts_reference.mix_quantized_experts(x, ids, weights, experts)
    assert error(out, mix_exactly(x, ids, weights, *exact, 2)) < limit_of(dtype)
