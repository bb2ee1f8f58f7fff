"""The decoder's norm kernels against the reference."""

import pytest
import torch

from vl2.ops.experts.mixture import Mixture, add_up
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


@pytest.mark.parametrize("has_shared", [False, True])
def test_what_experts_say_is_added_up_in_passing(device: torch.device, has_shared: bool):
    """Two routed experts and one that every token takes; the same bits as from their sum."""
    shared = torch.randn(3, 40, device=device).half() if has_shared else None
    mixture = Mixture(torch.randn(3 * 3, 40, device=device).half(), torch.rand(3, 2, device=device), shared)
    x, weight = torch.randn(3, 40, device=device), torch.randn(40, device=device).half()
    ours = kernel.add_rms_norm(x, mixture, weight, 1e-6)
    for mine, theirs in zip(ours, kernel.add_rms_norm(x, add_up(mixture), weight, 1e-6), strict=True):
        assert torch.equal(mine, theirs)
    told = mixture.results.double().unflatten(0, (3, 3))
    expected = (told[:, :2] * mixture.weights.double()[..., None]).sum(1) + told[:, 2]
    torch.testing.assert_close(
        add_up(mixture).double(), expected if shared is None else expected + shared, atol=5e-3, rtol=5e-3
    )


def test_rows_may_be_part_of_wider_ones(device: torch.device):
    wide, weight = torch.randn(5, 30, device=device), torch.randn(24, device=device)
    torch.testing.assert_close(
        kernel.rms_norm(wide[:, :24], weight, 1e-6), reference.rms_norm(wide[:, :24], weight, 1e-6)
    )
