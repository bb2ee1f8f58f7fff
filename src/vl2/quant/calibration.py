"""Conversations that a model is calibrated on: the user's pictures and questions, and the texts of `texts.py`.

A folder: each picture is asked one of a few questions. A file: the JSONL of `vl2 evaluate`, {"image": …, "question": …,
"answer": …} or {"pictures": […], "turns": [[question, answer], …]} a line. Answers are part of the conversation.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from vl2.core.errors import RequestError, SetupError
from vl2.core.media import PICTURE_SUFFIXES
from vl2.core.types import Message, Prompt
from vl2.processing.processor import Processor
from vl2.processing.tokenizer import ASSISTANT, USER, Tokenizer
from vl2.quant.texts import PICTURE_QUESTIONS, TEXTS

log = logging.getLogger(__name__)

MIN_CONVERSATIONS = 16
"""With pictures; fewer say too little about 64 experts."""
VISION_WEIGHT = 0.1
"""Of a picture token in the Hessians, a text token's being 1: there are many of them, alike, and they matter less."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation, as the model sees it."""

    prompt: Prompt
    writes: tuple[bool, ...] = ()  # where the model would go on with a token of an answer; empty: it is not known

    def weights(self, device: torch.device | str) -> torch.Tensor:
        """[T] float32: how much each token counts."""
        weights = torch.ones(len(self.prompt.token_ids))
        for span in self.prompt.spans:
            weights[span.start : span.start + span.length] = VISION_WEIGHT
        return weights.to(device)


@dataclass(frozen=True, slots=True)
class _Conversation:
    name: str
    messages: tuple[Message, ...]
    pictures: tuple[Path, ...]  # of the first message


def read_calibration(
    path: Path, processor: Processor, *, max_samples: int, max_tokens: int
) -> tuple[list[Sample], list[str]]:
    """(samples, what was skipped and why). `max_samples` conversations are taken evenly from all.

    Raises: SetupError when too few can be used.
    """
    samples, skipped = read_conversations(path, processor, max_samples=max_samples, max_tokens=max_tokens)
    for line in skipped:
        log.warning("skipped %s", line)
    if len(samples) < MIN_CONVERSATIONS:
        raise SetupError(
            f"--calibration {path} has {len(samples)} usable conversations ({len(skipped)} were skipped), but at least "
            f"{MIN_CONVERSATIONS} are needed; add pictures of the kind that the model will see"
        )
    return samples + [Sample(processor.process([Message("user", text)])) for text in TEXTS], skipped


def read_conversations(
    path: Path, processor: Processor, *, pictures: Path | None = None, max_samples: int, max_tokens: int
) -> tuple[list[Sample], list[str]]:
    """Those of a folder or file alone. `pictures`: where a file's are, if not beside it.

    Raises: SetupError.
    """
    found = list(_from_folder(path) if path.is_dir() else _from_file(path, pictures or path.parent))
    if len(found) > max_samples:
        found = [found[i * len(found) // max_samples] for i in range(max_samples)]
    samples, skipped = [], []
    for conversation in found:
        try:
            prompt = processor.process(_with_pictures(conversation))
        except (RequestError, OSError) as error:
            skipped.append(f"{conversation.name}: {error}")
            continue
        if len(prompt.token_ids) > max_tokens:
            skipped.append(f"{conversation.name}: {len(prompt.token_ids)} tokens, more than {max_tokens}")
        else:
            samples.append(Sample(prompt, tuple(_writes(prompt.token_ids, processor.tokenizer))))
    return samples, skipped


def _writes(token_ids: Iterable[int], tokenizer: Tokenizer) -> Iterator[bool]:
    """From behind `<|Assistant|>` to the answer's last token, whose end is foretold as well."""
    begin, user, is_answer = tokenizer.tag_ids[ASSISTANT], tokenizer.tag_ids[USER], False
    for token in token_ids:
        is_answer = is_answer and token not in (user, tokenizer.eos_id)
        yield is_answer
        is_answer = is_answer or token == begin


def digest(samples: Iterable[Sample]) -> str:
    """A name for what was calibrated on."""
    total = hashlib.blake2b(digest_size=16)
    for sample in samples:
        total.update(repr(sample.prompt.token_ids).encode())
        for key in sample.prompt.tile_keys:
            total.update(key)
    return total.hexdigest()


def _from_folder(folder: Path) -> Iterator[_Conversation]:
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
    for number, picture in enumerate(pictures):
        question = PICTURE_QUESTIONS[number % len(PICTURE_QUESTIONS)]
        yield _Conversation(str(picture), (Message("user", f"<image>\n{question}"),), (picture,))


def _from_file(file: Path, folder: Path) -> Iterator[_Conversation]:
    """Raises: SetupError naming the line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"--calibration {file} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            raw = json.loads(line)
            is_simple = "question" in raw
            names = [raw["image"]] if is_simple else raw.get("pictures", ())
            pictures = tuple(folder / str(name) for name in names)
            turns = (
                [(str(turn[0]), str(turn[1])) for turn in raw["turns"]]
                if not is_simple
                else [(str(raw["question"]), str(raw["answer"]))]
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise SetupError(f"--calibration {file}, line {number}: no pictures and turns: {error!r}") from None
        messages: list[Message] = []
        for question, answer in turns:
            tags = "<image>\n" * len(pictures) if not messages and "<image>" not in question else ""
            messages += [Message("user", tags + question), Message("assistant", answer)]
        yield _Conversation(f"{file.name}, line {number}", tuple(messages), pictures)


def _with_pictures(conversation: _Conversation) -> tuple[Message, ...]:
    first, *rest = conversation.messages
    data = tuple(picture.read_bytes() for picture in conversation.pictures)
    return Message(first.role, first.content, data), *rest
