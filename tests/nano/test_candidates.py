"""Candidates of the next run: each is a command line that training takes, and differs from A in one thing."""

import sys

import pytest
from candidates import CANDIDATES
from train import arguments, schedule


def options(words: str, monkeypatch) -> dict:
    monkeypatch.setattr(sys, "argv", ["train.py", "--run", "runs", *words.split()])
    return vars(arguments())


@pytest.mark.parametrize("name", sorted(set(CANDIDATES) - {"A"}))
def test_a_candidate_differs_from_a_in_one_thing(name, monkeypatch):
    a, other = (options(CANDIDATES[n], monkeypatch) for n in ("A", name))
    assert sum(a[k] != other[k] for k in a) == 1


@pytest.mark.parametrize("power, below_a_third", [(1.0, 0.3), (1.5, 0.43)])
def test_a_higher_power_gives_low_rates_more_time(power, below_a_third):
    rates = [schedule(k / 1000, 0.1, power) for k in range(20, 1000)]
    assert rates == sorted(rates, reverse=True) and rates[0] == 1.0 and rates[-1] == 0.01
    assert sum(r < 1 / 3 for r in rates) / 1000 == pytest.approx(below_a_third, abs=0.01)


def test_without_its_flags_training_is_as_it_was(monkeypatch):
    a = options("", monkeypatch)
    assert (a["amount"], a["counting"], a["fine"], a["mix"], a["alike"]) == (0, 1, False, "plain", 0)
    assert not a["aloud"] and not a["crowds"] and a["power"] == 1
