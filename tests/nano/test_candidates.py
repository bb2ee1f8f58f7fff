"""Candidates of the next run: each is a command line that training takes, and differs from A in one thing."""

import sys

import pytest
from candidates import CANDIDATES
from train import arguments


def options(words: str, monkeypatch) -> dict:
    monkeypatch.setattr(sys, "argv", ["train.py", "--run", "runs", *words.split()])
    return vars(arguments())


@pytest.mark.parametrize("name", sorted(set(CANDIDATES) - {"A"}))
def test_a_candidate_differs_from_a_in_one_thing(name, monkeypatch):
    a, other = (options(CANDIDATES[n], monkeypatch) for n in ("A", name))
    assert sum(a[k] != other[k] for k in a) == 1


def test_without_its_flags_training_is_as_it_was(monkeypatch):
    a = options("", monkeypatch)
    assert (a["amount"], a["counting"], a["fine"], a["mix"], a["alike"]) == (0, 1, False, "plain", 0)
