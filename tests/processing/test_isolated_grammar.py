"""Grammars are compiled elsewhere first, within limits."""

from __future__ import annotations

import json
import threading
import time

import pytest

from vl2.core.config import ProcessorConfig
from vl2.core.errors import InvalidRequest
from vl2.core.types import Grammar
from vl2.processing import constrain
from vl2.processing.isolated import GRAMMARS, check_grammar

LIMITS = ProcessorConfig(grammar_timeout_s=60)


def slow(num_fields: int = 2500) -> Grammar:
    """Each field has a pattern of its own: seconds of work."""
    fields = {f"p{idx}": {"type": "string", "pattern": "^[a-z]{1,20}$"} for idx in range(num_fields)}
    return Grammar("json_schema", json.dumps({"type": "object", "properties": fields}))


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("json_schema", '{"type": "integer"}'),
        Grammar("json_schema", '{"not": {}}'),
        Grammar("json_schema", "[]"),
        Grammar("regex", "[0-9]+ cats"),
        Grammar("regex", "(?=a)b"),
        Grammar("regex", "[^\\s\\S]"),
        Grammar("choice", ("yes", "nö")),
        Grammar("grounding"),
        Grammar("json_object"),
    ],
    ids=str,
)
def test_the_verdict_is_the_same_as_here(grammar: Grammar) -> None:
    def verdict(check) -> str | None:
        try:
            check(grammar)
        except InvalidRequest as error:
            assert error.param == "grammar"
            return error.message
        return None

    assert verdict(lambda g: check_grammar(g, LIMITS)) == verdict(constrain.check_grammar)


def test_one_that_takes_too_long_is_refused_in_time_and_the_next_is_checked() -> None:
    check_grammar(Grammar("regex", "warm"), LIMITS)
    num_killed, started_s = GRAMMARS.num_killed, time.monotonic()
    with pytest.raises(InvalidRequest, match=r"takes longer than 0\.2 s \(grammar_timeout_s\); simplify it"):
        check_grammar(slow(), ProcessorConfig(grammar_timeout_s=0.2))
    assert time.monotonic() - started_s < 2 and GRAMMARS.num_killed == num_killed + 1
    check_grammar(Grammar("regex", "next"), LIMITS)


def test_what_was_good_once_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    check_grammar(Grammar("regex", "again"), LIMITS)
    monkeypatch.setattr(GRAMMARS, "ask", None)
    check_grammar(Grammar("regex", "again"), LIMITS)


def test_slow_ones_keep_this_process_free() -> None:
    """The compiler would hold Python's lock here, and with it every stream."""
    check_grammar(Grammar("regex", "warm too"), LIMITS)
    done = threading.Event()
    worker = threading.Thread(target=lambda: (check_grammar(slow(600), LIMITS), done.set()))
    worker.start()
    gaps, last_s = [], time.monotonic()
    while not done.wait(0.001):
        gaps.append(time.monotonic() - last_s)
        last_s = time.monotonic()
    worker.join()
    assert max(gaps) < 0.5
