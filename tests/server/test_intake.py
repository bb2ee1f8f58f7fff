"""A short run of `intake_run`; `make fuzz` runs the long one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.intake_run import LIMITS, run, values
from vl2.core.errors import RequestError
from vl2.processing.images import open_image
from vl2.server.fetch import decode_base64, decode_data_url
from vl2.server.intake import check_count


def test_mutated_files_are_taken_or_refused_and_cost_no_worker() -> None:
    told = run(1000)
    for kind in ("picture", "pdf", "json", "base64"):
        assert told[f"{kind} refused"] > 10 and told[f"{kind} taken"] > 0
    assert told["decoders_killed"] == 0


def num_values(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(num_values, inner))


@settings(max_examples=300, deadline=None)
@given(values, st.sampled_from((None, 2)))
def test_values_are_counted_exactly_before_they_are_built(value: Any, indent: int | None) -> None:
    data = json.dumps(value, indent=indent).encode()
    check_count(data, num_values(value))
    with pytest.raises(RequestError):
        check_count(data, num_values(value) - 1)


@pytest.mark.parametrize("piece", [b"{},", b"0,", b'"",', b'"a\\\\",', b"["])
def test_a_long_body_of_small_values_is_refused_without_building_any(piece: bytes) -> None:
    with pytest.raises(RequestError, match="more than 1000 values"):
        check_count(b"[" + piece * 100_000, 1000)


def test_values_of_a_large_body_are_counted_exactly() -> None:
    """Large ones are counted in pieces."""
    value = [{"a": "x" * 200_000}, *range(3000), "y" * 200_000, [[]], {}]
    data = json.dumps(value).encode()
    check_count(data, num_values(value))
    with pytest.raises(RequestError):
        check_count(data, num_values(value) - 1)


@pytest.mark.parametrize("text", ["," * 5000, '\\",[{' * 5000, "\\"])
def test_commas_and_brackets_of_a_text_are_no_values(text: str) -> None:
    check_count(json.dumps({"a": text, "b": [text]}).encode(), 4)
    check_count(json.dumps({"a": text}).encode()[:-2], 4)  # without its end: json's own error tells


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_picture_or_refused(data: bytes) -> None:
    try:
        open_image(data, LIMITS)
    except RequestError as error:
        assert "\n" not in error.message


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=100) | st.text(max_size=60).map("data:image/png;base64,".__add__))
def test_any_text_is_base64_or_refused(text: str) -> None:
    try:
        decode_data_url(text) if text.startswith("data:") else decode_base64(text)
    except RequestError as error:
        assert len(error.message) < 300
