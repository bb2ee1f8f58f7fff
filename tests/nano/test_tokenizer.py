"""Nano's tokenizer: nothing is unknown, coordinates are one token, printed digits are one each."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer import SPECIALS, build, encode
from tokenizers import Tokenizer

TOK = build()
ASSETS = Path(__file__).parents[2] / "src/vl2/assets/nano"


@given(st.text())
def test_any_text_survives_the_round_trip(text):
    if not any(s in text for s in SPECIALS) and "｜" not in text:
        assert TOK.decode(encode(TOK, text), skip_special_tokens=False) == text


@pytest.mark.parametrize("n", [0, 7, 10, 99, 100, 345, 999])
def test_a_coordinate_is_one_token(n):
    ids = encode(TOK, f"<|det|>[[{n}, {n}, {n}, {n}], [{n}, 1, 2, 3]]<|/det|>")
    number = TOK.token_to_id(str(n))
    assert ids.count(number) == 5 + sum(n == k for k in (1, 2, 3))
    assert len(ids) == 2 + 2 + 8 + 6 + 1  # tags, brackets, numbers, commas, "], ["


def test_a_printed_number_is_one_token_a_digit():
    assert [TOK.id_to_token(i) for i in encode(TOK, "120457")] == list("120457")


def test_special_tokens_are_single_and_bos_eos_pad_come_first():
    assert [TOK.token_to_id(t) for t in ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")] == [
        0,
        1,
        2,
    ]
    assert all(len(encode(TOK, s)) == 1 for s in SPECIALS)


def test_names_are_whole_tokens_in_and_at_the_start_of_an_answer():
    assert len(encode(TOK, "cat, dog")) == 3 and len(encode(TOK, "How many cats are there?")) == 6


def test_the_shipped_tokenizer_is_this_one_and_fits_the_embedding():
    shipped = Tokenizer.from_file(str(ASSETS / "tokenizer.json"))
    assert shipped.get_vocab() == TOK.get_vocab()
    config = json.loads((ASSETS / "config.json").read_text())
    assert TOK.get_vocab_size() <= config["language_config"]["vocab_size"]
