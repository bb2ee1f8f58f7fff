from __future__ import annotations

import json

import pytest
import tokenizers
from hypothesis import assume, given
from hypothesis import strategies as st

from golden_cases import load_variant
from vl2.core.errors import CheckpointError
from vl2.processing.tokenizer import FRAME_TOKENS, GROUNDING_TAGS, ROLE_AND_GROUNDING_TAGS, Tokenizer, byte_alphabet

FOLDER = load_variant("mla-greedy").folder
OFFICIAL_ORDER = [FRAME_TOKENS["pad_token"], "<image>", *ROLE_AND_GROUNDING_TAGS]


def copy_without(tmp_path, *removed: str):
    """A checkpoint whose tokenizer.json lacks some added tokens; those that stay keep their order."""
    raw = json.loads((FOLDER / "tokenizer.json").read_text())
    stay = [token for token in raw["added_tokens"] if token["content"] not in removed]
    raw["added_tokens"] = [token | {"id": 560 + idx} for idx, token in enumerate(stay)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    return tmp_path


def test_text_survives_encoding(tokenizer):
    text = "naïve 图片 👩‍👩‍👧 \t\n<|ref|>a<|/ref|>"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))).decode() == text


def test_neither_bos_nor_eos_is_added(tokenizer):
    assert tokenizer.encode("") == []
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(tokenizer.encode("a question"))


def test_the_text_of_a_special_token_becomes_that_token(tokenizer):
    assert tokenizer.encode("<|User|>") == [tokenizer.tag_ids["<|User|>"]]
    assert tokenizer.encode("<image>") == [tokenizer.image_id]


def test_the_byte_alphabet_has_every_byte_once():
    assert sorted(byte_alphabet().values()) == list(range(256))
    assert byte_alphabet()["Ġ"] == ord(" ")


@given(st.lists(st.integers(0, 580)))
def test_token_bytes_concatenate_to_what_the_tokenizers_library_decodes(ids):
    ours, theirs = Tokenizer.from_folder(FOLDER), tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    whole = b"".join(map(ours.token_bytes, ids)).decode("utf-8", errors="replace")
    assert whole == theirs.decode(ids, skip_special_tokens=False)


def test_an_id_without_token_has_no_bytes(tokenizer):
    assert tokenizer.token_bytes(639) == b""
    assert tokenizer.text(10**6) == ""


def test_a_token_within_a_character_shows_as_replacement_but_keeps_its_bytes(tokenizer):
    first = tokenizer.encode("👀")[0]
    assert tokenizer.text(first) == "\ufffd"
    assert "👀".encode().startswith(tokenizer.token_bytes(first))


def test_missing_special_tokens_are_appended_in_the_official_order(tmp_path):
    tokenizer = Tokenizer.from_folder(copy_without(tmp_path, *OFFICIAL_ORDER))
    assert [tokenizer.pad_id, tokenizer.image_id, *tokenizer.tag_ids.values()] == list(range(562, 571))
    assert tokenizer.encode("<|det|>") == [tokenizer.tag_ids["<|det|>"]]


def test_only_what_is_missing_is_appended(tmp_path):
    tokenizer = Tokenizer.from_folder(copy_without(tmp_path, "<|ref|>", "<|User|>"))
    assert (tokenizer.tag_ids["<|ref|>"], tokenizer.tag_ids["<|User|>"]) == (569, 570)
    assert tokenizer.image_id == 563


def test_tokens_outside_the_embedding_are_refused(tmp_path):
    Tokenizer.from_folder(FOLDER, vocab_size=571)
    with pytest.raises(CheckpointError, match=r"<\|Assistant\|> has id 570, outside the embedding of 570 rows"):
        Tokenizer.from_folder(FOLDER, vocab_size=570)


def test_a_tokenizer_without_bos_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no token <｜begin▁of▁sentence｜>"):
        Tokenizer.from_folder(copy_without(tmp_path, FRAME_TOKENS["bos_token"]))


@pytest.mark.parametrize("content", [None, "", "{", '{"model": 1}', "\0\1"])
def test_a_missing_or_corrupt_file_is_one_clear_line(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json (is missing|cannot be read)") as caught:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in caught.value.message


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path):
    bpe = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    bpe.enable_truncation(2)
    bpe.enable_padding(length=50)
    bpe.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.from_folder(tmp_path).encode("one two three four")) > 2
    assert len(Tokenizer.from_folder(tmp_path).encode("a")) == 1


@given(st.lists(st.sampled_from([*FRAME_TOKENS.values(), *OFFICIAL_ORDER, "<|User|>", " ", "a", "\n", "<", "|"])))
def test_what_somebody_types_becomes_no_token_but_grounding_tags(parts):
    tokenizer = Tokenizer.from_folder(FOLDER)
    text = "".join(parts)
    ids = tokenizer.encode_plain(text)
    allowed = {tokenizer.tag_ids[tag] for tag in GROUNDING_TAGS}
    assert set(ids) & tokenizer.reserved_ids <= allowed
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text


@given(st.text(max_size=40))
def test_text_without_special_tokens_is_encoded_the_same_in_both_ways(text):
    tokenizer = Tokenizer.from_folder(FOLDER)
    ids = tokenizer.encode(text)
    assume(not tokenizer.reserved_ids & set(ids))
    assert tokenizer.encode_plain(text) == ids
