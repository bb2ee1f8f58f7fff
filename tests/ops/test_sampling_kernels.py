"""Sampling on the device takes the tokens that the reference takes."""

import pytest
import torch

from vl2.ops.sampling import kernel, reference
from vl2.ops.sampling.rows import SamplingRows


def rows(device: torch.device, *settings: tuple[float, int, float, float, float]) -> SamplingRows:
    """(temperature, top-k, top-p, min-p, draw) of each row."""
    temperatures, top_ks, top_ps, min_ps, uniforms = zip(*settings, strict=True)

    def tensor(values: tuple[float, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return SamplingRows(
        tensor(temperatures), tensor(top_ks, torch.int32), tensor(top_ps), tensor(min_ps), tensor(uniforms)
    )


def test_without_temperature_the_best_token_and_of_equal_ones_the_lowest_id(device: torch.device):
    logits = torch.zeros(2, 9000, device=device)
    logits[0, [5000, 70]] = 1.0
    assert kernel.sample(logits, rows(device, (0, 0, 1, 0, 0.5), (0, 3, 1, 0, 0.9))).tolist() == [70, 0]


@pytest.mark.parametrize(
    "setting", [(1.0, 0, 1.0, 0.0), (0.7, 5, 1.0, 0.0), (1.3, 0, 0.8, 0.0), (1.0, 0, 1.0, 0.1), (0.9, 40, 0.95, 0.02)]
)
def test_draws_are_those_of_the_reference(device: torch.device, setting: tuple[float, int, float, float]):
    torch.manual_seed(0)
    draws = [0.0, 0.013, 0.37, 0.7, 0.93, 0.9999]
    logits = torch.randn(len(draws), 5000, device=device) * 3
    asked = rows(device, *((*setting, draw) for draw in draws))
    assert kernel.sample(logits, asked).tolist() == reference.sample(logits, asked).tolist()


def test_equal_tokens_are_ordered_by_id(device: torch.device):
    logits = torch.full((4, 4100), -9.0, device=device)
    logits[:, [3, 17, 4099, 2000]] = 2.0
    asked = rows(device, *((0.1, 4, 1.0, 0.0, draw) for draw in (0.1, 0.3, 0.6, 0.9)))
    assert kernel.sample(logits, asked).tolist() == [3, 17, 2000, 4099]


def test_banned_tokens_are_never_drawn(device: torch.device):
    logits = torch.full((1, 300), float("-inf"), device=device)
    logits[0, 7] = -50.0
    for draw in (0.0, 0.5, 0.99999):
        assert kernel.sample(logits, rows(device, (1.0, 0, 0.9, 0.0, draw))).tolist() == [7]


def test_a_draw_that_falls_between_two_tokens_by_rounding_takes_one_of_them(device: torch.device):
    """The sum down to a token is not that down to the one before it plus its own: it is rounded elsewhere, and draws
    between both were given the last token of the vocabulary."""
    draws = {71: 0.9997339, 112: 0.9924768, 165: 0.9999804}  # by seed
    logits = torch.stack([torch.randn(12000, generator=torch.Generator().manual_seed(seed)) * 3 for seed in draws])
    logits[:, 0] = logits.amax(1) + 3
    logits, asked = logits.to(device), rows(device, *((1.0, 0, 1.0, 0.0, draw) for draw in draws.values()))
    places = logits.argsort(dim=-1, descending=True).argsort(dim=-1)
    own, right = (places.gather(1, ops.sample(logits, asked)[:, None]) for ops in (kernel, reference))
    assert (own - right).abs().max() < 20, "the reference adds up in float64"


@pytest.mark.parametrize("setting", [(1.0, 0, 1.0, 0.0), (1.0, 5, 1.0, 0.0), (1.0, 0, 0.5, 0.0), (1.0, 0, 1.0, 0.3)])
def test_the_last_draw_of_all_stays_within_what_may_be_drawn(device: torch.device, setting: tuple):
    torch.manual_seed(0)
    logits = torch.randn(2, 5000, device=device)
    logits[:, 100:] = float("-inf")
    asked = rows(device, *[(*setting, 1 - 2**-24)] * len(logits))
    assert kernel.sample(logits, asked).tolist() == reference.sample(logits, asked).tolist()


def test_what_is_no_number_is_not_drawn_and_a_row_without_any_gets_a_token_of_the_vocabulary(device: torch.device):
    """Its embedding is looked up by the next step: beyond the vocabulary that would end the engine for all."""
    logits = torch.zeros(3, 4200, device=device)
    logits[0, 3], logits[0, 4150], logits[1:] = float("nan"), 1.0, float("nan")
    best, lost, drawn = kernel.sample(
        logits, rows(device, (0, 0, 1, 0, 0), (0, 0, 1, 0, 0), (1, 5, 0.9, 0.1, 0.7))
    ).tolist()
    assert best == 4150 and 0 <= lost < 4200 and 0 <= drawn < 4200
