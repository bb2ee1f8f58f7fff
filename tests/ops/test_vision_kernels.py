"""What the vision tower takes from the kernels, against the references."""

import pytest
import torch

from vl2.ops import cublas
from vl2.ops.activation import linear_gelu
from vl2.ops.norm import layer_kernel, reference
from vl2.ops.patches import kernel as patches_kernel
from vl2.ops.patches import reference as patches_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1152, 40])
def test_layer_norm_after_an_addition(device: torch.device, dtype: torch.dtype, width: int):
    stream = torch.float32 if dtype == torch.float16 else dtype
    x = torch.randn(2, 3, width, device=device).to(stream) * 5 + 2
    delta, weight, bias = (
        torch.randn(*shape, device=device).to(dtype) for shape in ((2, 3, width), (width,), (width,))
    )
    for added in (delta, delta[0], None):  # the second: the same for each of the first axis
        total, normed = layer_kernel.add_layer_norm(x, added, weight, bias)
        expected_total, expected = reference.add_layer_norm(x, added, weight, bias)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2  # the interpreter rounds bfloat16 towards zero
        assert normed.dtype == dtype
        torch.testing.assert_close(total, expected_total, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(normed, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gelu_in_the_epilogue(device: torch.device, dtype: torch.dtype):
    x, weight, bias = (torch.randn(*shape, device=device).to(dtype) for shape in ((2, 5, 64), (96, 64), (96,)))
    ours, expected = cublas.linear_gelu(x, weight, bias), linear_gelu(x, weight, bias)
    assert ours.shape == (2, 5, 96) and ours.dtype == dtype
    exact = linear_gelu(x.double(), weight.double(), bias.double())
    error, allowed = (value.double() - exact for value in (ours, expected))
    assert error.square().mean() <= 1.2**2 * allowed.square().mean() + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("side", "size"), [(20, 6), (384, 14)])
def test_patches_become_rows_filled_up_with_zeros(device: torch.device, dtype: torch.dtype, side: int, size: int):
    tiles = torch.arange(2 * side**2 * 3, device=device).remainder(256).to(torch.uint8).view(2, side, side, 3)
    if device.type == "cpu":
        tiles = tiles[:1]
    rows = patches_kernel.cut_patches(tiles, size, dtype)
    expected = patches_reference.cut_patches(tiles.cpu(), size, dtype).to(device)  # on a GPU torch divides inexactly
    width = expected.shape[-1]
    assert rows.shape == (*expected.shape[:2], -(-width // 16) * 16) and rows.dtype == dtype
    assert rows[..., width:].eq(0).all()
    tolerance = {torch.float32: 0.0, torch.bfloat16: 8e-3, torch.float16: 0.0}[dtype] if device.type == "cpu" else 0.0
    torch.testing.assert_close(rows[..., :width], expected, atol=tolerance, rtol=0.0)
