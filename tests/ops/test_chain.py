"""Kernels that begin while the one before them ends: what they read early is what it will be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.ops.test_attention_kernels import PAGE_SIZE, make_batch
from tests.ops.test_ops import moe_config
from tests.ops.test_quantized_kernels import INT4, experts_of
from vl2.engine.capture import capture
from vl2.ops import triton_backend as ops
from vl2.ops.experts.mixture import Mixture, add_up
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.quantized_weight import triton_layout
from vl2.ops.rope.table import rope_table

EXPERTS, ACTIVE, WIDTH, INNER, STEPS, REPLAYS = 4, 2, 512, 256, 100, 20


def mixtures(
    device: torch.device, is_quantized: bool, is_undecided: bool, dtype: torch.dtype
) -> Callable[[], torch.Tensor]:
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
        given = token, nothing, norm, 1e-6, router, None, config
        if is_undecided:
            return add_up(ops.norm_and_mix(*given, quantized if is_quantized else experts)[2])
        _, normed, ids, weights = ops.norm_and_route(*given)
        mixture: Mixture = (
            ops.mix_quantized_experts(normed, ids, weights, quantized)
            if is_quantized
            else ops.mix_experts(normed, ids, weights, experts)
        )
        return add_up(mixture)

    return lambda: torch.cat([mix(token) for token in tokens])


@pytest.mark.gpu
@pytest.mark.parametrize("is_quantized", [False, True])
@pytest.mark.parametrize("is_undecided", [False, True])
def test_down_reads_the_choice_of_its_own_token(device: torch.device, is_quantized: bool, is_undecided: bool) -> None:
    """Launched one by one, kernels hardly overlap; in a graph each is there before the last one ends. Made by a kernel
    before gate-up or by gate-up's own first program, it is the same."""
    run = mixtures(device, is_quantized, is_undecided, torch.bfloat16)
    expected = run()
    torch.cuda.synchronize()
    graph, out = capture(run, torch.cuda.graph_pool_handle())
    for _ in range(REPLAYS):
        graph.replay()
        assert torch.equal(out, expected)


def attentions(
    device: torch.device, contexts: list[int], dtype: torch.dtype
) -> tuple[Callable[[], torch.Tensor], list[torch.Tensor]]:
    """(one layer after the other writes the step's rows into a cache of its own and attends, where these rows lie)"""
    torch.manual_seed(0)
    heads, nope, rope, value, rank = 16, 32, 16, 32, 64

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, device=device) * shape[-1] ** -0.5).to(dtype)

    batch, _, num_pages = make_batch([(context, 1) for context in contexts], device)
    rows, positions = torch.arange(len(contexts), device=device), batch.context_lengths.long() - 1
    slots = batch.block_tables[rows, positions // PAGE_SIZE].long() * PAGE_SIZE + positions % PAGE_SIZE
    q_width, table = heads * (nope + rope), rope_table(rope, 100, 1e4, None, device)
    mix, kv_b = draw(q_width + rank + rope, heads * value), draw(heads * (nope + value), rank)
    norm, x = torch.ones(rank, dtype=dtype, device=device), draw(len(contexts), heads * value) * 20
    pools = [torch.randn(num_pages, PAGE_SIZE, rank + rope, device=device).to(dtype) for _ in range(STEPS // 4)]

    def run() -> torch.Tensor:
        outs = [x]
        for pool in pools:
            both = ops.linear(outs[-1], mix)
            q, own = both[:, :q_width].contiguous().view(-1, heads, nope + rope), both[:, q_width:]
            places = positions, slots, batch, 0.2
            outs.append(ops.decode_mla(own, norm, 1e-6, q, kv_b, pool, table, *places))
        return torch.stack(outs)

    return run, [pool.view(-1, rank + rope)[slots[0] : slots[0] + 1] for pool in pools]


@pytest.mark.gpu
@pytest.mark.parametrize("contexts", [[97], [97, 64, 33]])
def test_a_step_reads_its_own_cache_rows_after_they_are_written(contexts: list[int], device: torch.device) -> None:
    run, newest = attentions(device, contexts, torch.bfloat16)
    expected = run()
    torch.cuda.synchronize()
    graph, out = capture(run, torch.cuda.graph_pool_handle())
    for _ in range(REPLAYS):
        for rows in newest:
            rows.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, expected)
