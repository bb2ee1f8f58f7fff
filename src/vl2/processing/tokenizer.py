"""tokenizer.json → ids and back: byte-level BPE with DeepSeek-VL2's special tokens.

Ids are looked up by text, as they differ between the published models. BOS and EOS are never added by the tokenizer.
Source: `DeepseekVLV2Processor.__init__` of the official repository; `ByteLevel` of huggingface/tokenizers.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as BPETokenizer

from vl2.core.errors import CheckpointError
from vl2.processing.checkpoint_files import read_json_object

IMAGE_TOKEN = "<image>"
REF, REF_END, DET, DET_END, GROUNDING = "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"
GROUNDING_TAGS = (REF, REF_END, DET, DET_END, GROUNDING)
ROLE_AND_GROUNDING_TAGS = (*GROUNDING_TAGS, USER, ASSISTANT)
# The bars are U+FF5C, the low lines U+2581. tokenizer_config.json may name others.
FRAME_TOKENS = {
    "bos_token": "<｜begin▁of▁sentence｜>",
    "eos_token": "<｜end▁of▁sentence｜>",
    "pad_token": "<｜▁pad▁｜>",
}


def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level BPE vocabulary (GPT-2's alphabet).

    Printable bytes stand for themselves; the others take characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + idx): byte for idx, byte in enumerate(others)}


class Tokenizer:
    """Text ⇄ ids of one checkpoint. Thread-safe once made."""

    def __init__(self, bpe: BPETokenizer, frame: dict[str, str] = FRAME_TOKENS) -> None:
        """Appends the special tokens that `bpe` lacks, in the official order. `frame` names BOS, EOS and padding."""
        self._bpe = bpe
        bpe.no_truncation()
        bpe.no_padding()
        for token in (frame["pad_token"], IMAGE_TOKEN):
            if bpe.token_to_id(token) is None:
                _add_special(bpe, token)
        for token in ROLE_AND_GROUNDING_TAGS:
            _add_special(bpe, token)
        self.bos_id = _existing(bpe, frame["bos_token"])
        self.eos_id = _existing(bpe, frame["eos_token"])
        self.pad_id = _existing(bpe, frame["pad_token"])
        self.image_id = _existing(bpe, IMAGE_TOKEN)
        self.tag_ids = {tag: _existing(bpe, tag) for tag in ROLE_AND_GROUNDING_TAGS}
        self._plain_bpe = _without_specials(bpe)
        self._alphabet = byte_alphabet()
        self._token_bytes: dict[int, bytes] = {}
        self._whole_texts: dict[int, str | None] = {}

    @classmethod
    def from_folder(cls, folder: Path, vocab_size: int | None = None) -> Tokenizer:
        """Of a checkpoint. `vocab_size`: rows of its embedding; no token may lie outside.

        Raises: CheckpointError.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; is {folder} a complete DeepSeek-VL2 checkpoint?")
        try:
            bpe = BPETokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing narrower
            raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
        tokenizer = cls(bpe, _frame_tokens(folder))
        if vocab_size is not None:
            tokenizer._check_ids(path, vocab_size)
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the appended ones included; the embedding usually has more rows."""
        return self._bpe.get_vocab_size(with_added_tokens=True)

    @property
    def reserved_ids(self) -> set[int]:
        """Tokens that stand for no ordinary text: roles, pictures, tags, placeholders."""
        added = self._bpe.get_added_tokens_decoder()
        return {
            token_id
            for token_id, token in added.items()
            if token.special or (token.content.startswith("<") and token.content.endswith(">"))
        }

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without BOS and EOS. The text of a special token becomes that token, wherever it stands."""
        return self._bpe.encode(text, add_special_tokens=False).ids

    def encode_plain(self, text: str) -> list[int]:
        """Ids of what somebody typed: grounding tags are themselves; the text of any other special token is text."""
        return self._plain_bpe.encode(text, add_special_tokens=False).ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to the answer; b"" for an id without token.

        Consecutive tokens' bytes concatenate to the UTF-8 of the whole; one token may end within a character. A token
        with a character outside the byte alphabet, such as a special one with full-width bars, means its own UTF-8.
        """
        known = self._token_bytes.get(token_id)
        if known is None:
            token = self._bpe.id_to_token(token_id) or ""
            try:
                known = bytes([self._alphabet[character] for character in token])
            except KeyError:
                known = token.encode("utf-8")
            self._token_bytes[token_id] = known
        return known

    def whole_text(self, token_id: int) -> str | None:
        """A token's bytes as text; None when they are not whole characters."""
        if token_id not in self._whole_texts:
            try:
                self._whole_texts[token_id] = self.token_bytes(token_id).decode("utf-8")
            except UnicodeDecodeError:
                self._whole_texts[token_id] = None
        return self._whole_texts[token_id]

    def text(self, token_id: int) -> str:
        """A token's bytes as text, with U+FFFD for parts of a character."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def _check_ids(self, path: Path, vocab_size: int) -> None:
        specials = {"BOS": self.bos_id, "EOS": self.eos_id, "padding": self.pad_id, IMAGE_TOKEN: self.image_id}
        for name, token_id in (specials | self.tag_ids).items():
            if token_id >= vocab_size:
                raise CheckpointError(
                    f"{path}: the token {name} has id {token_id}, outside the embedding of {vocab_size} rows; "
                    "this tokenizer belongs to another model"
                )


def _without_specials(bpe: BPETokenizer) -> BPETokenizer:
    """The same vocabulary, in which text becomes a grounding tag but no other added token.

    tokenizers can leave special tokens alone, and leaves none but those: so what is added is declared special, and the
    grounding tags are not.
    """
    raw = json.loads(bpe.to_str())
    for token in raw["added_tokens"]:
        is_tag_like = token["content"].startswith("<") and token["content"].endswith(">")
        token["special"] = (token["special"] or is_tag_like) and token["content"] not in GROUNDING_TAGS
    plain = BPETokenizer.from_str(json.dumps(raw))
    plain.encode_special_tokens = True
    return plain


def _add_special(bpe: BPETokenizer, token: str) -> None:
    """Append `token`, or make it special if the vocabulary has it already."""
    bpe.add_special_tokens([AddedToken(token, normalized=False, special=True)])


def _existing(bpe: BPETokenizer, token: str) -> int:
    token_id = bpe.token_to_id(token)
    if token_id is None:
        raise CheckpointError(f"tokenizer.json has no token {token}; is it DeepSeek-VL2's?")
    return token_id


def _frame_tokens(folder: Path) -> dict[str, str]:
    """BOS, EOS and padding as tokenizer_config.json names them: a text, or an object with a `content`."""
    path = folder / "tokenizer_config.json"
    raw = read_json_object(path) if path.exists() else {}
    names = {}
    for key, official in FRAME_TOKENS.items():
        value = raw.get(key) or official
        name = value.get("content") if isinstance(value, dict) else value
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: {key} is {value!r}, but must be a text")
        names[key] = name
    return names
