"""A short run of `intake_run`; `make fuzz` runs the long one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from server.intake_run import LIMITS, run
from vl2.core.errors import RequestError
from vl2.processing.images import open_image
from vl2.server.fetch import decode_base64, decode_data_url


def test_mutated_files_are_taken_or_refused_and_cost_no_worker() -> None:
    told = run(1000)
    for kind in ("picture", "pdf", "json", "base64"):
        assert told[f"{kind} refused"] > 10 and told[f"{kind} taken"] > 0
    assert told["decoders_killed"] == 0


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
