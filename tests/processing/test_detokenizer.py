"""Streaming: whatever the ids, the pieces make up the whole text, and nothing shown is ever taken back."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from golden_cases import load_variant, load_variants
from vl2.processing.detokenizer import Detokenizer
from vl2.processing.tokenizer import FRAME_TOKENS, Tokenizer

FOLDER = load_variant("mla-greedy").folder
TOKENIZER = Tokenizer.from_folder(FOLDER)
LIBRARY = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))

IDS = st.lists(st.integers(0, 575), max_size=40)
TEXTS = st.text(st.sampled_from("abc \n图片é👀👩‍👧"), max_size=20)
STOPS = st.lists(st.text(st.sampled_from("abc \n图👀"), min_size=1, max_size=4), max_size=3).map(tuple)


def stream(ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """The pieces in order, and whether a stop string was met."""
    detokenizer = Detokenizer(TOKENIZER, stop)
    pieces = [detokenizer.push(token_id) for token_id in ids]
    return [*pieces, detokenizer.finish()], detokenizer.stopped


def byte_ids(text: str) -> list[int]:
    """Ids of single bytes: every character outside ASCII is split over tokens."""
    by_bytes = {TOKENIZER.token_bytes(token_id): token_id for token_id in range(256)}
    return [by_bytes[bytes([byte])] for byte in text.encode()]


def cut_at_stop(text: str, stop: tuple[str, ...]) -> str:
    """The definition: read character by character, and end before the first stop string that is complete."""
    for end in range(1, len(text) + 1):
        starts = [end - len(word) for word in stop if text[:end].endswith(word)]
        if starts:
            return text[: min(starts)]
    return text


@pytest.mark.parametrize("case", [case for variant in load_variants() for case in variant.cases], ids=str)
def test_greedy_answers_read_as_the_official_ones(case):
    tokenizer = Tokenizer.from_folder(load_variant(case.variant).folder)
    detokenizer = Detokenizer(tokenizer)
    text = "".join(map(detokenizer.push, case.greedy_tokens)) + detokenizer.finish()
    assert text == case.meta["greedy_text"].replace(FRAME_TOKENS["eos_token"], "")


@given(IDS)
def test_the_pieces_make_up_the_whole_decoded_text(ids):
    whole = LIBRARY.decode([i for i in ids if i != TOKENIZER.eos_id], skip_special_tokens=False)
    pieces, stopped = stream(ids)
    assert "".join(pieces) == whole
    assert not stopped


@given(TEXTS)
def test_split_characters_wait_for_their_last_byte(text):
    pieces, _ = stream(byte_ids(text))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


@given(TEXTS.map(byte_ids) | IDS, STOPS)
@example(byte_ids("abcd"), ("abcd", "bc"))
@example(byte_ids("aab"), ("ab",))
@example(byte_ids("a👀"), ("👀",))
def test_the_text_ends_before_the_first_stop_string_whatever_the_tokens(ids, stop):
    whole = "".join(stream(ids)[0])
    pieces, stopped = stream(ids, stop)
    assert "".join(pieces) == cut_at_stop(whole, stop)
    assert stopped == any(word in whole for word in stop)


@given(TEXTS.map(TOKENIZER.encode), STOPS)
def test_what_is_shown_is_never_the_beginning_of_a_stop_string_that_comes(ids, stop):
    """After each piece, the text so far is a beginning of the final text: nothing leaks, nothing is taken back."""
    pieces, _ = stream(ids, stop)
    final = cut_at_stop("".join(stream(ids)[0]), stop)
    for end in range(len(pieces) + 1):
        assert final.startswith("".join(pieces[:end]))


@given(IDS)
def test_the_bytes_of_the_tokens_concatenate_exactly(ids):
    ids = [i for i in ids if i != TOKENIZER.eos_id]
    joined = b"".join(map(TOKENIZER.token_bytes, ids))
    assert joined.decode("utf-8", errors="replace") == "".join(stream(ids)[0])


def test_text_is_shown_at_once_where_no_stop_string_can_begin():
    assert stream(byte_ids("ab!cd"), ("b!x",))[0] == ["a", "", "", "b!c", "d", ""]


def test_held_back_text_comes_at_the_end_if_the_stop_string_does_not():
    assert stream(byte_ids("ab"), ("abc",)) == (["", "", "ab"], False)


def test_an_unfinished_character_shows_at_the_end_as_replacement():
    assert stream(byte_ids("a👀")[:-1])[0] == ["a", "", "", "", "\ufffd"]


def test_nothing_comes_after_a_stop_string():
    detokenizer = Detokenizer(TOKENIZER, ("b",))
    assert [detokenizer.push(token_id) for token_id in byte_ids("abab")] == ["a", "", "", ""]
    assert detokenizer.stopped
    assert detokenizer.finish() == ""


def test_eos_is_dropped_and_grounding_tags_stay():
    ids = [*TOKENIZER.encode("<|ref|>a<|/ref|>"), TOKENIZER.eos_id]
    assert "".join(stream(ids)[0]) == "<|ref|>a<|/ref|>"
