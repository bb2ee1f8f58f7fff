"""The router's kernels choose what the reference chooses."""

import dataclasses

import pytest
import torch

from tests.ops.test_ops import moe_config
from vl2.ops.experts.mixture import Mixture
from vl2.ops.gate import kernel, reference
from vl2.ops.norm.reference import add_rms_norm


@pytest.mark.parametrize("num_tokens", [1, 5, 40])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_ids_and_weights(device: torch.device, num_tokens: int, scoring: str, has_bias: bool):
    torch.manual_seed(1)
    config = dataclasses.replace(
        moe_config(num_experts=11, num_active=3, norm_topk_prob=has_bias, routed_scaling_factor=2.0),
        scoring_func=scoring,
        topk_method="noaux_tc" if has_bias else "greedy",
    )
    x, weight = torch.randn(num_tokens, 48, device=device), torch.randn(11, 48, device=device)
    bias = torch.randn(11, device=device) if has_bias else None
    ids, weights = kernel.route(x, weight, bias, config)
    expected_ids, expected = reference.route(x, weight, bias, config)
    assert ids.tolist() == expected_ids.tolist()
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("num_tokens", [1, 5, 17])
@pytest.mark.parametrize("is_mixture", [False, True])
def test_the_norm_before_the_router_in_one_launch(device: torch.device, num_tokens: int, is_mixture: bool):
    """Of up to 16 tokens; what comes to them may be experts' results that nobody has added up."""
    torch.manual_seed(num_tokens)
    config = moe_config(num_experts=11, num_active=3, topk_method="noaux_tc")
    x, norm_weight = torch.randn(num_tokens, 48, device=device), torch.randn(48, device=device)
    router, bias = torch.randn(11, 48, device=device), torch.randn(11, device=device)
    delta = torch.randn(num_tokens, 48, device=device)
    if is_mixture:
        delta = Mixture(torch.randn(num_tokens * 2, 48, device=device), torch.rand(num_tokens, 2, device=device))
    total, normed, ids, weights = kernel.norm_and_route(x, delta, norm_weight, 1e-6, router, bias, config)
    expected_total, expected = add_rms_norm(x, delta, norm_weight, 1e-6)
    expected_ids, expected_weights = reference.route(expected, router, bias, config)
    assert ids.tolist() == expected_ids.tolist()
    for own, theirs in ((total, expected_total), (normed, expected), (weights, expected_weights)):
        torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_tokens", [1, 17, 300])
def test_logits_of_bfloat16_rows_are_as_exact_as_float32_allows(device: torch.device, num_tokens: int):
    torch.manual_seed(num_tokens)
    x, weight = torch.randn(num_tokens, 300, device=device).bfloat16(), torch.randn(11, 300, device=device)
    exact = x.double() @ weight.T.double()
    logits = kernel.router_logits(x, weight).unflatten(1, (-1, 11)).sum(1)  # one part, or three
    assert (logits - exact).norm() / exact.norm() < 1e-6  # of weights rounded to bfloat16 it would be 2e-3


def test_a_weight_is_the_sum_of_its_parts_and_they_are_made_once(device: torch.device):
    weight = torch.randn(3, 50, device=device) * torch.logspace(-20, 20, 50, device=device)
    parts = kernel.parts_of(weight)
    assert parts.dtype == torch.bfloat16 and torch.equal(parts.double().unflatten(0, (3, 3)).sum(0).float(), weight)
    assert kernel.parts_of(weight) is parts


def test_equal_scores_go_to_the_lower_expert(device: torch.device):
    ids, _ = kernel.route(torch.ones(2, 4, device=device), torch.ones(6, 4, device=device), None, moe_config())
    assert ids.tolist() == [[0, 1]] * 2


def test_scores_that_are_no_numbers_choose_experts_that_exist(device: torch.device):
    """Or a kernel would read weights where there are none."""
    x = torch.tensor([[float("nan")] * 4, [1.0] * 4], device=device)
    ids, _ = kernel.route(x, torch.ones(6, 4, device=device), None, moe_config())
    assert ids[1].tolist() == [0, 1] and bool(((ids >= 0) & (ids < 6)).all())


def test_groups_give_rows_that_lie_side_by_side(device: torch.device):
    config = moe_config(topk_method="group_limited_greedy", num_groups=3, num_active_groups=1)
    x, weight = torch.randn(5, 8, device=device), torch.randn(6, 8, device=device)
    ids, weights = kernel.route(x, weight, None, config)
    assert ids.is_contiguous() and weights.is_contiguous()
    assert ids.tolist() == reference.route(x, weight, None, config)[0].tolist()
