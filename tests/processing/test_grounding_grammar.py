"""Random walks over the allowed tokens: whatever is drawn, the answer parses, and there is always a way on."""

from __future__ import annotations

import functools
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden_cases import load_variant
from vl2.processing.boxes import Boxes, BoxesWritten, length_to_end, step, walk
from vl2.processing.grounding import parse_grounding
from vl2.processing.grounding_grammar import GroundingMatcher, GroundingVocabulary
from vl2.processing.tokenizer import ASSISTANT, DET, DET_END, REF, REF_END, Tokenizer

VARIANTS = ("mla-greedy", "mha-greedy")  # DeepSeek-V2's and V3's ways of cutting text
BLOCK = re.compile(r"\[\[\d+, \d+, \d+, \d+\](, \[\d+, \d+, \d+, \d+\])*\]")
ROWS = 640


@functools.cache
def vocabulary(variant: str) -> GroundingVocabulary:
    tokenizer = Tokenizer.from_folder(load_variant(variant).folder, ROWS)
    return GroundingVocabulary(tokenizer, ROWS, tokenizer.eos_id)


def answer(
    variant: str, rng: random.Random, max_tokens: int, *, prefix: str = "", eagerness: float = 0.3
) -> tuple[str, bool]:
    """(text with its prefix, whether EOS ended it): random allowed tokens, tags more often than chance has them."""
    vocab = vocabulary(variant)
    tokenizer = vocab.tokenizer
    prompt_ids = tokenizer.encode(f"<|User|>: Where?\n\n{ASSISTANT}:{prefix}")
    matcher = GroundingMatcher(vocab, prompt_ids, max_tokens)
    data = prefix.encode()
    rare = [tokenizer.tag_ids[tag] for tag in (REF, REF_END, DET, DET_END)]
    for _ in range(max_tokens):
        allowed = np.flatnonzero(matcher.mask()).tolist()
        tags = [token_id for token_id in rare if token_id in allowed]
        token_id = rng.choice(tags if tags and rng.random() < eagerness else allowed)
        if token_id == tokenizer.eos_id:
            return data.decode(errors="replace"), True
        matcher.accept(token_id)
        data += tokenizer.token_bytes(token_id)
    return data.decode(errors="replace"), False


def is_well_formed(text: str) -> bool:
    objects = parse_grounding(text, 1000, 1000)
    if not any(tag in text for tag in (REF, REF_END, DET, DET_END)):
        return objects is None
    blocks = re.findall(r"<\|det\|>(.*?)<\|/det\|>", text)
    return (
        objects is not None
        and len(objects) == text.count(REF) == text.count(DET) == text.count(REF_END) == text.count(DET_END)
        and all(BLOCK.fullmatch(block) for block in blocks)
        and all(0 <= x1 < x2 <= 999 and 0 <= y1 < y2 <= 999 for found in objects for x1, y1, x2, y2 in found.boxes_norm)
    )


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), max_tokens=st.integers(1, 90))
def test_whatever_is_drawn_and_wherever_it_is_cut_the_answer_is_well_formed(variant: str, seed: int, max_tokens: int):
    text, _ = answer(variant, random.Random(seed), max_tokens)
    assert is_well_formed(text), text


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), max_tokens=st.integers(16, 60))
def test_a_block_that_the_prompt_has_begun_is_ended(variant: str, seed: int, max_tokens: int):
    prefix = "<|ref|>the cat<|/ref|><|det|>"
    text, _ = answer(variant, random.Random(seed), max_tokens, prefix=prefix, eagerness=0.1)
    assert text.startswith(prefix) and is_well_formed(text), text


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_the_shortest_way_out_is_as_long_as_it_says(data: st.DataObject):
    """From any state that can be reached, some character brings the end nearer by exactly one."""
    state: Boxes | BoxesWritten | None = Boxes()
    for _ in range(data.draw(st.integers(0, 40))):
        assert isinstance(state, Boxes)
        ways = [way for char in "0123456789[], " if isinstance(way := step(state, char), Boxes)]
        state = data.draw(st.sampled_from(ways))
    while isinstance(state, Boxes):
        lengths = {length_to_end(way): way for char in "0123456789[], " if (way := step(state, char)) is not None}
        assert min(lengths) == length_to_end(state) - 1
        state = lengths[min(lengths)]
    assert length_to_end(BoxesWritten()) == 0


@pytest.mark.parametrize(
    ("text", "is_good"),
    [
        ("[[0, 0, 1, 1]]", True),
        ("[[998, 998, 999, 999], [1, 2, 30, 400]]", True),
        ("[[10, 10, 10, 20]]", False),  # no width
        ("[[10, 10, 9, 20]]", False),
        ("[[10, 30, 100, 29]]", False),
        ("[[999, ", False),  # nothing is right of it
        ("[[01", False),
        ("[[1000", False),
        ("[[1,2", False),
        ("[]", False),
        ("[[5, 5, 4", True),  # may become 40 … 499
        ("[[50, 5, 40", True),  # may become 400 … 409
        ("[[500, 5, 49", False),
        ("[[1, 1, 2, 2]] ", False),
    ],
)
def test_boxes_are_spelled_in_one_way(text: str, is_good: bool):
    assert (walk(Boxes(), text) is not None) is is_good


def allowed_after(prefix: str, num_left: int = 100, variant: str = "mla-greedy") -> set[str]:
    tokenizer = vocabulary(variant).tokenizer
    matcher = GroundingMatcher(vocabulary(variant), tokenizer.encode(f"{ASSISTANT}:{prefix}"), num_left)
    return {tokenizer.text(int(token_id)) for token_id in np.flatnonzero(matcher.mask())}


def test_each_place_has_its_tags():
    tags, eos = {REF, REF_END, DET, DET_END}, vocabulary("mla-greedy").tokenizer.text(561)
    assert allowed_after("A cat") & {*tags, eos, "<|User|>", "<image>"} == {REF, eos}
    assert allowed_after("<|ref|>") & {*tags, eos, "\n", "a"} == {"a"}, "a label is not empty"
    assert allowed_after("<|ref|>a") & {*tags, eos, "\n", "a"} == {"a", REF_END}
    assert allowed_after("<|ref|>a<|/ref|>") == {DET}
    assert allowed_after("<|ref|>a<|/ref|><|det|>") == {"[", "[["}
    assert allowed_after("<|ref|>a<|/ref|><|det|>[[1, 1, 2, 2]]") == {DET_END}


def test_numbers_are_in_range():
    begun = "<|ref|>a<|/ref|><|det|>"
    assert allowed_after(begun + "[[") == set("0123456789")
    assert allowed_after(begun + "[[99") == {*"012345678", ","}, "999 has nothing right of it"
    assert allowed_after(begun + "[[880, 5, ") == {"8", "9"}
    assert allowed_after(begun + "[[880, 5, 88") == set("123456789")
    two_digits = {text for text in allowed_after(begun + "[[880, 5, ", variant="mha-greedy") if len(text) == 2}
    assert two_digits and all(text >= "88" for text in two_digits)


def test_a_tag_in_letters_cannot_be_completed():
    assert ">" in allowed_after("a <|re|") and ">" not in allowed_after("a <|ref|")
    assert ">" not in allowed_after("<|ref|>a <|/det|")


def test_objects_that_would_be_cut_are_not_begun():
    """label, </ref>, <det>, 14 characters, </det> follow <ref>: 18 tokens."""
    assert REF in allowed_after("A cat", num_left=19) and REF not in allowed_after("A cat", num_left=18)
    assert allowed_after("<|ref|>a", num_left=17) == {REF_END}
    assert "," not in allowed_after("<|ref|>a<|/ref|><|det|>[[1, 1, 2, 2]", num_left=10)
    assert "[[" in allowed_after("<|ref|>a<|/ref|><|det|>", num_left=3), "too few from the beginning: cut anyway"
