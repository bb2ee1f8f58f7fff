"""Experts whose rows have the same bits however many there are.

A pair of token and expert is summed over the inner width in one order in each of the tiles of `kernel.py`, if the GPU's
instructions for few and for many rows add up alike; that is tried once. Shared experts are always further experts:
as matrix products of their own, as `kernel_many.py` has them, their two results would not be rounded one by one.
"""

from __future__ import annotations

import functools
import logging

import torch

from vl2.ops.experts.kernel import FEW, MANY, SEVERAL, SOME, choose_tile, count_shared, mix_sorted, mix_tiled
from vl2.ops.experts.kernel_common import Tile
from vl2.ops.experts.mixture import Mixture
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.rows import RowRounding

log = logging.getLogger(__name__)

TRIED = 400, 512
"""Rows and widths of the sums that tell whether two tiles add up alike."""


def mix_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    experts: ExpertWeights,
    rounding: RowRounding = RowRounding(),
) -> Mixture:
    """`Backend.mix_experts` (ops/backend.py)."""
    num_experts = len(experts.gate_up) + count_shared(experts)
    tile = choose_tile(len(x) * (ids.shape[1] + count_shared(experts)), num_experts, x.dtype)
    if x.dtype == torch.float32:
        return mix_sorted(x, ids, weights, experts, tile)
    if tile not in agreeing_tiles(x.device, x.dtype):
        tile = SOME
    mix = mix_tiled if boxes_agree(x.device, x.dtype) else mix_sorted
    return mix(x, ids, weights, experts, tile)


@functools.cache
def agreeing_tiles(device: torch.device, dtype: torch.dtype) -> tuple[Tile, ...]:
    """Those that give the same bits as `SOME`."""
    given = _trial(device, dtype)
    expected, agreeing = mix_sorted(*given, SOME), [SOME]
    for tile in (FEW, SEVERAL, MANY):
        if torch.equal(mix_sorted(*given, tile).results, expected.results):
            agreeing.append(tile)
        else:
            log.warning("deterministic: this GPU adds up otherwise in experts' tiles of %s, which are not used", tile)
    return tuple(agreeing)


@functools.cache
def boxes_agree(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether tiles that the copy engine brings, which a single token's are not, give the same bits."""
    given = _trial(device, dtype)
    agrees = all(
        torch.equal(mix_tiled(*given, tile).results, mix_sorted(*given, tile).results) for tile in (SOME, MANY)
    )
    if not agrees:
        log.warning("deterministic: this GPU adds up otherwise in tiles that its copy engine brings, so threads do")
    return agrees


def _trial(device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, ExpertWeights]:
    """What `mix_sorted` takes: so many sums that another order must show in some of them."""
    generator, num_experts = torch.Generator(device).manual_seed(0), 4
    rows, width = TRIED

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    up, down = draw(num_experts, 2 * width, width), draw(num_experts, width, width)
    experts = ExpertWeights((up / width**0.5).to(dtype), down.to(dtype), None, None)
    x, ids = draw(rows, width).to(dtype), draw(rows, num_experts).topk(2).indices.int()
    return x, ids, torch.ones(rows, 2, device=device), experts
