"""Grammars are compiled elsewhere first, within limits."""

from __future__ import annotations

import json
import time

import psutil
import pytest

from vl2.core.config import ProcessorConfig
from vl2.core.errors import InvalidRequest
from vl2.core.types import Grammar
from vl2.processing import constrain
from vl2.processing.isolated import GRAMMARS, check_grammar

LIMITS = ProcessorConfig(grammar_timeout_s=180)


def slow(num_fields: int) -> Grammar:
    """Each field has a pattern of its own: of hundreds, a second of work."""
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
    num_killed = GRAMMARS.num_killed
    with pytest.raises(InvalidRequest, match=r"takes longer than 0\.05 s \(grammar_timeout_s\); simplify it"):
        check_grammar(slow(3000), ProcessorConfig(grammar_timeout_s=0.05))
    assert GRAMMARS.num_killed == num_killed + 1
    check_grammar(Grammar("regex", "next"), LIMITS)


def test_what_was_good_once_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    check_grammar(Grammar("regex", "again"), LIMITS)
    monkeypatch.setattr(GRAMMARS, "ask", None)
    check_grammar(Grammar("regex", "again"), LIMITS)


def test_slow_ones_keep_this_process_free() -> None:
    """The compiler would hold Python's lock here, and with it every stream. Processors' time, whatever else runs."""
    grammar = slow(600)
    check_grammar(Grammar("regex", "warm too"), LIMITS)
    compiler = psutil.Process(GRAMMARS._idle[-1].process.pid)
    there_s, here_s = cpu_s(compiler), time.thread_time()
    check_grammar(grammar, LIMITS)
    there_s, here_s = cpu_s(compiler) - there_s, time.thread_time() - here_s
    assert here_s < 0.1 * there_s


def cpu_s(process: psutil.Process) -> float:
    used = process.cpu_times()
    return used.user + used.system
