"""Answers whose objects can only be well-formed: an automaton over tokens, and what it allows next.

    Text          any text; <|ref|> begins an object, EOS ends the answer
    Label         text of one line, not empty, up to <|/ref|>
    BeforeBoxes   <|det|>, nothing else
    Boxes         see boxes.py
    BoxesWritten  <|/det|>, nothing else

The tags are tokens of their own; text that spells one out in letters is not allowed, as a reader could not tell the
difference. Other special tokens (roles, pictures) are not allowed at all.

An answer that max_tokens cuts is well-formed too: no token is allowed after which too few are left to close what is
open. The shortest way is counted in single characters, each of which is a token of a byte-level vocabulary.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vl2.core.errors import CheckpointError
from vl2.processing.boxes import (
    DIGITS,
    NOT_POSSIBLE,
    PUNCTUATION,
    Boxes,
    BoxesWritten,
    completions,
    length_after,
    length_to_end,
    step,
    walk,
)
from vl2.processing.grounding import COORDINATE_MAX
from vl2.processing.tokenizer import ASSISTANT, DET, DET_END, REF, REF_END, Tokenizer

TAGS = tuple(tag.encode() for tag in (REF, REF_END, DET, DET_END))


@dataclass(frozen=True, slots=True)
class Text:
    pending: bytes = b""  # the end of the text so far that a tag in letters may begin with


@dataclass(frozen=True, slots=True)
class Label:
    pending: bytes = b""
    is_empty: bool = True


@dataclass(frozen=True, slots=True)
class BeforeBoxes:
    pass


State = Text | Label | BeforeBoxes | Boxes | BoxesWritten


def tokens_to_close(state: State) -> int:
    """The fewest tokens after which the answer may end."""
    match state:
        case Text():
            return 0
        case Label(is_empty=is_empty):
            return is_empty + 1 + tokens_to_close(BeforeBoxes())
        case BeforeBoxes():
            return 1 + tokens_to_close(Boxes())
        case _:
            return length_to_end(state) + 1


def advance(state: State, token_id: int, tokenizer: Tokenizer) -> State | None:
    """The state after a token; None where it is not allowed."""
    tags = tokenizer.tag_ids
    match state:
        case BeforeBoxes():
            return Boxes() if token_id == tags[DET] else None
        case BoxesWritten():
            return Text() if token_id == tags[DET_END] else None
        case Text() if token_id == tags[REF]:
            return Label()
        case Label(is_empty=False) if token_id == tags[REF_END]:
            return BeforeBoxes()
    if token_id in (tags[REF], tags[REF_END], tags[DET], tags[DET_END]):
        return None
    data = tokenizer.token_bytes(token_id)
    if isinstance(state, Boxes):
        return walk(state, data.decode("latin-1")) if data else None
    text = state.pending + data
    if any(tag in text for tag in TAGS):
        return None
    if isinstance(state, Text):
        return Text(_tag_beginning(text))
    return None if b"\n" in data else Label(_tag_beginning(text), state.is_empty and not data)


def _tag_beginning(text: bytes) -> bytes:
    """The end of `text` that a tag begins with; tags have one "<" only, their first character."""
    end = text[text.rfind(b"<") :] if b"<" in text else b""
    return end if end and any(tag.startswith(end) for tag in TAGS) else b""


def state_after_prompt(token_ids: Sequence[int], tokenizer: Tokenizer) -> State | None:
    """Where an answer goes on that the prompt has begun behind its last `<|Assistant|>`; None: it cannot go on."""
    state: State | None = Text()
    marker = tokenizer.tag_ids[ASSISTANT]
    if marker in token_ids:
        begin = len(token_ids) - list(reversed(token_ids)).index(marker)
        for token_id in token_ids[begin:]:
            state = state and advance(state, token_id, tokenizer)
    return state


class GroundingVocabulary:
    """Which tokens of a vocabulary are allowed in a state. Shared by all answers; safe to use from many threads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_id: int) -> None:
        """`vocab_size`: rows of the embedding; ids without a token are never allowed. Raises: CheckpointError."""
        self.tokenizer, self.eos_id = tokenizer, eos_id
        reserved = tokenizer.reserved_ids | {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, eos_id}
        plain = [
            (data, token_id)
            for token_id in range(vocab_size)
            if token_id not in reserved and (data := tokenizer.token_bytes(token_id))
        ]
        singles = {data for data, _ in plain if len(data) == 1}
        missing = [character for character in DIGITS + PUNCTUATION if character.encode() not in singles]
        if missing:
            raise CheckpointError(f"tokenizer.json has no tokens for the characters {missing} that boxes are made of")
        self._sorted = sorted(plain)
        self._in_text, self._in_label = np.zeros(vocab_size, bool), np.zeros(vocab_size, bool)
        self._in_text[[token_id for data, token_id in plain if not any(tag in data for tag in TAGS)]] = True
        self._in_label[[token_id for data, token_id in plain if b"\n" not in data]] = True
        self._in_label &= self._in_text
        self._punctuation: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for data, token_id in plain:
            if not data.strip(PUNCTUATION.encode()):
                self._punctuation[chr(data[0])].append((data.decode(), token_id))
        # Digits are tokens apart from punctuation in all vocabularies of the family; a mixed one is not allowed.
        numbers = [(data.decode(), token_id) for data, token_id in plain if len(data) <= 3 and data.isdigit()]
        self._number_ids = np.array([token_id for _, token_id in numbers])
        self._number_values = np.array([int(text) for text, _ in numbers])
        self._number_lengths = np.array([len(text) for text, _ in numbers])

    def mask(self, state: State, num_left: int) -> np.ndarray:
        """[V] bool: the tokens allowed next, where `num_left` may still be generated."""
        if tokens_to_close(state) > num_left:
            num_left = 1 << 30  # it will be cut whatever is done
        tags = self.tokenizer.tag_ids
        match state:
            case Text(pending):
                mask = self._open_text(self._in_text, pending)
                mask[self.eos_id] = True
                mask[tags[REF]] = tokens_to_close(Label()) < num_left
            case Label(pending, is_empty):
                if tokens_to_close(Label(is_empty=False)) < num_left:
                    mask = self._open_text(self._in_label, pending)
                else:
                    mask = np.zeros_like(self._in_label)
                mask[tags[REF_END]] = not is_empty
            case _:
                mask = np.zeros_like(self._in_text)
                mask[self._in_block(state, num_left)] = True
        return mask

    def _open_text(self, mask: np.ndarray, pending: bytes) -> np.ndarray:
        """Without the tokens that would complete a tag in letters."""
        mask = mask.copy()
        for tag in TAGS if pending else ():
            if tag.startswith(pending):
                rest = tag[len(pending) :]
                first = bisect.bisect_left(self._sorted, (rest,))
                last = bisect.bisect_left(self._sorted, (rest[:-1] + bytes([rest[-1] + 1]),))
                mask[[token_id for _, token_id in self._sorted[first:last]]] = False
        return mask

    def _in_block(self, state: BeforeBoxes | Boxes | BoxesWritten, num_left: int) -> list[int]:
        tags = self.tokenizer.tag_ids
        match state:
            case BeforeBoxes():
                return [tags[DET]]
            case BoxesWritten():
                return [tags[DET_END]]
        allowed = self._numbers(state, num_left) if state.is_at_number else []
        for character in PUNCTUATION:
            if step(state, character) is not None:
                for text, token_id in self._punctuation[character]:
                    after = walk(state, text)
                    if after is not None and tokens_to_close(after) < num_left:
                        allowed.append(token_id)
        return allowed

    def _numbers(self, state: Boxes, num_left: int) -> list[int]:
        """Tokens of digits, all at once: a vocabulary may have more than a thousand of them."""
        if state.digits == "0":
            return []
        begun, num_begun = int(state.digits or 0), len(state.digits)
        beginnings = begun * 10**self._number_lengths + self._number_values
        is_number = num_begun + self._number_lengths <= 3
        if not num_begun:  # no leading zeros
            is_number &= (self._number_values >= 10 ** (self._number_lengths - 1)) | (self._number_lengths == 1)
        beginnings = np.where(is_number, beginnings, COORDINATE_MAX)
        extra, values = (table[beginnings].astype(np.int64) for table in completions(*state.limits))
        to_close = extra + length_after([*state.numbers, values]) + 1
        return self._number_ids[is_number & (extra != NOT_POSSIBLE) & (to_close < num_left)].tolist()


class GroundingMatcher:
    """Follows one answer."""

    def __init__(self, vocabulary: GroundingVocabulary, prompt_ids: Sequence[int], max_tokens: int) -> None:
        state = state_after_prompt(prompt_ids, vocabulary.tokenizer)
        assert state is not None, "`constrain.check_prompt` has refused such prompts"
        self._vocabulary, self._state, self._num_left = vocabulary, state, max_tokens

    def mask(self) -> np.ndarray:
        """[V] bool: the tokens allowed next."""
        return self._vocabulary.mask(self._state, self._num_left)

    def accept(self, token_id: int) -> None:
        state = advance(self._state, token_id, self._vocabulary.tokenizer)
        assert state is not None, f"token {token_id} was not allowed"
        self._state, self._num_left = state, self._num_left - 1
