"""Kernels that begin while the one before them ends: what they read early is what it will be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.ops.test_ops import moe_config
from tests.ops.test_quantized_kernels import INT4, experts_of
from vl2.engine.capture import capture
from vl2.ops import triton_backend as ops
from vl2.ops.experts.mixture import Mixture, add_up
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.quantized_weight import triton_layout

EXPERTS, ACTIVE, WIDTH, INNER, STEPS, REPLAYS = 4, 2, 512, 256, 100, 20


def mixtures(device: torch.device, is_quantized: bool, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """One token after the other chooses its experts and asks them; what they chose lies where others chose before."""
    torch.manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, device=device) * 0.1).to(dtype)

    quantized = experts_of(INT4, triton_layout, dtype, device, 1, WIDTH, INNER)[0]
    experts = ExpertWeights(draw(EXPERTS, 2 * INNER, WIDTH), draw(EXPERTS, WIDTH, INNER), None, None)
    tokens, nothing, norm = draw(STEPS, 1, WIDTH), draw(1, WIDTH) * 0, torch.ones(WIDTH, dtype=dtype, device=device)
    router = torch.randn(EXPERTS, WIDTH, device=device)
    config = moe_config(num_experts=EXPERTS, num_active=ACTIVE, expert_width=INNER, shared_width=0)

    def mix(token: torch.Tensor) -> torch.Tensor:
        _, normed, ids, weights = ops.norm_and_route(token, nothing, norm, 1e-6, router, None, config)
        mixture: Mixture = (
            ops.mix_quantized_experts(normed, ids, weights, quantized)
            if is_quantized
            else ops.mix_experts(normed, ids, weights, experts)
        )
        return add_up(mixture)

    return lambda: torch.cat([mix(token) for token in tokens])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("is_quantized", [False, True])
def test_down_reads_the_choice_of_its_own_token(device: torch.device, is_quantized: bool) -> None:
    """Launched one by one, kernels hardly overlap; in a graph each is there before the last one ends."""
    run = mixtures(device, is_quantized, torch.bfloat16)
    expected = run()
    torch.cuda.synchronize()
    graph, out = capture(run, torch.cuda.graph_pool_handle())
    for _ in range(REPLAYS):
        graph.replay()
        assert torch.equal(out, expected)
