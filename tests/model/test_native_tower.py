"""The vision tower and the projector by one call each beside the same layers one by one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.ops.native.builds import needs_library
from vl2.core.model_config import ProjectorConfig, VisionConfig
from vl2.model.packing import pack_weights
from vl2.model.projector import Projector
from vl2.model.vision import VisionTower
from vl2.ops import native_backend
from vl2.ops.native.linear import multiplies, pack_linear

pytestmark = [
    pytest.mark.cpu_only,
    needs_library,
    pytest.mark.skipif(not multiplies(), reason="towers are computed so where there are matrix units"),
]


def fill(module: torch.nn.Module) -> None:
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2:
            parameter.data.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.2)
        else:
            parameter.data.normal_(0.0, parameter.shape[-1] ** -0.5)
    pack_weights(module)


def relative_error(x: torch.Tensor, right: torch.Tensor) -> float:
    return float((x.float() - right.float()).square().mean() / right.float().square().mean())


@pytest.mark.parametrize(("width", "heads", "mlp_width"), [(48, 3, 179), (96, 2, 128)])
@torch.inference_mode()
def test_a_tower_in_one_call_is_that_block_by_block(width: int, heads: int, mlp_width: int) -> None:
    """Widths that are no multiples of a tile's, pixels that fill no patch."""
    config = VisionConfig(76, 14, width, layers=3, heads=heads, mlp_width=mlp_width, has_attn_pool=False)
    tower = VisionTower(config, native_backend, dtype=torch.bfloat16, device="cpu")
    fill(tower)
    tiles = torch.randint(256, (3, 76, 76, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    native, tower.native = tower.native, None
    assert native is not None
    right, own = tower(tiles), native.run(tiles)
    assert own.shape == right.shape and relative_error(own, right) < 1e-4
    assert torch.equal(native.run(tiles[1:2]), own[1:2]), "a tile's bits are its own"
    assert native.run(tiles[:0]).shape == (0, *right.shape[1:])


@pytest.mark.parametrize("depth", [2, 3])
@torch.inference_mode()
def test_a_projector_in_one_call_is_that_layer_by_layer(depth: int) -> None:
    """A grid of 5 is filled up to 6."""
    config = ProjectorConfig(input_dim=48, n_embed=96, depth=depth, mlp_ratio=1, downsample_ratio=2)
    projector = Projector(config, dtype=torch.bfloat16, device="cpu")
    fill(projector)
    features = torch.randn(2, 25, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    native, projector.native = projector.native, None
    assert native is not None
    right, own = projector(features), native.run(features)
    assert own.shape == right.shape == (2, 9, 96) and relative_error(own, right) < 1e-4
    assert torch.equal(native.run(features[1:]), own[1:])


@torch.inference_mode()
def test_rows_are_filled_up_where_a_weight_is() -> None:
    weight = torch.randn(64, 45 * 2, generator=torch.Generator().manual_seed(0)).bfloat16() / 8
    own = pack_linear(weight)
    assert own is not None
    x = torch.randn(20, 90, generator=torch.Generator().manual_seed(1)).bfloat16()
    right = F.linear(x.double(), weight.double())
    torch.testing.assert_close(own.multiply(x).double(), right, atol=1e-4, rtol=2**-8)
