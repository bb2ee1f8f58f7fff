"""The decoder's norm kernels against the reference."""

import pytest
import torch

from vl2.ops.norm import kernel, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1280, 40])
def test_norm_after_an_addition(device: torch.device, dtype: torch.dtype, width: int):
    stream = torch.float32 if dtype == torch.float16 else dtype
    x, delta = (torch.randn(3, width, device=device) * 4 for _ in range(2))
    weight = torch.randn(width, device=device).to(dtype)
    ours = kernel.add_rms_norm(x.to(stream), delta.to(dtype), weight, 1e-6)
    expected = reference.add_rms_norm(x.to(stream), delta.to(dtype), weight, 1e-6)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2  # the interpreter rounds bfloat16 towards zero
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance)


def test_rows_may_be_part_of_wider_ones(device: torch.device):
    wide, weight = torch.randn(5, 30, device=device), torch.randn(24, device=device)
    torch.testing.assert_close(
        kernel.rms_norm(wide[:, :24], weight, 1e-6), reference.rms_norm(wide[:, :24], weight, 1e-6)
    )
