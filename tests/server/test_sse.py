"""Pieces of plain text are written around their text; nobody can tell them from those that are written as a whole."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl2.core.types import Delta, FinishReason
from vl2.server.openai.render import ChatRenderer
from vl2.server.openai.sse import MARK, ChatEvents


def renderer(**given: bool) -> ChatRenderer:
    return ChatRenderer("chatcmpl-1", 1_790_000_000, f"a {MARK} model", "vl2-1", **given)


def written(writer: ChatEvents, *deltas: Delta) -> list[dict]:
    events = [event for delta in deltas for event in writer.write(delta)]
    return [json.loads(event.removeprefix(b"data: ").removesuffix(b"\n\n")) for event in events]


@given(st.lists(st.tuples(st.integers(0, 1), st.text(max_size=8)), max_size=8), st.booleans())
def test_every_piece_reads_as_if_it_were_written_as_a_whole(pieces: list[tuple[int, str]], has_usage: bool) -> None:
    deltas = [Delta(idx, text, (7,)) for idx, text in pieces]
    deltas += [Delta(idx, "", (), finish_reason=FinishReason.LENGTH) for idx in (0, 1)]
    whole = renderer(has_usage_chunk=has_usage)
    expected = [json.loads(json.dumps(chunk)) for delta in deltas for chunk in whole.chunks(delta)]
    assert written(ChatEvents(renderer(has_usage_chunk=has_usage)), *deltas) == expected


@pytest.mark.parametrize("text", ['"', "\\", "\n\n", "\x00", "\u2028", "👩‍👧", MARK])
def test_text_cannot_break_out_of_its_event(text: str) -> None:
    chunks = written(ChatEvents(renderer()), Delta(0, "a", (1,)), Delta(0, text, (2,)), Delta(0, text, (3,)))
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "a", text, text]


@pytest.mark.parametrize("extra", ["has_token_ids", "has_logprobs"])
def test_what_was_asked_for_beside_the_text_is_in_every_piece(extra: str) -> None:
    delta = Delta(0, "a", (7,))
    whole = renderer(**{extra: True})
    expected = [chunk for _ in range(3) for chunk in whole.chunks(delta)]
    assert written(ChatEvents(renderer(**{extra: True})), *[delta] * 3) == json.loads(json.dumps(expected))
