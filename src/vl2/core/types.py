"""Nouns that all layers share. Plain data: no torch, no I/O.

A question travels down as `Message`s → `Prompt` → `GenerateRequest`; the answer comes back up as `TokenEvent`s →
`Delta`s. Each type has one producer and one consumer (see `docs/concepts/request.md`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Union, get_args

import numpy as np

from vl2.core.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL import Image

ImageSource = Union[bytes, str, "os.PathLike[str]", "Image.Image"]
"""A picture as people hand it over: encoded bytes, a path, or a decoded PIL image."""

IMAGE_TAG = "<image>"
ROLES = ("system", "user", "assistant")
MAX_TOP_LOGPROBS = 20


# ---- down: what was asked -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `content` holds one `<image>` tag for each picture of `images`, in order.

    A last message of role "assistant" is a prefix that the answer continues.
    """

    role: str
    content: str
    images: tuple[ImageSource | ImagePart, ...] = ()

    @classmethod
    def from_parts(cls, role: str, parts: list[str | ImagePart]) -> Message:
        """Join text and picture parts, with nothing between.

        Where the texts hold no `<image>` tag, each picture becomes a tag and a line break where it stands; where they
        hold as many tags as there are pictures, those are the places.

        Raises: InvalidRequest when the number of tags is neither zero nor the number of pictures.
        """
        images = tuple(part if part.is_low_detail else part.source for part in parts if isinstance(part, ImagePart))
        num_tags = sum(part.count(IMAGE_TAG) for part in parts if isinstance(part, str))
        if num_tags not in (0, len(images)):
            raise InvalidRequest(
                f"the text has {num_tags} {IMAGE_TAG} tags but {len(images)} pictures came with it; "
                f"write one tag for each picture, or none at all",
                param="messages",
            )
        tag = "" if num_tags else IMAGE_TAG + "\n"
        return cls(role, "".join(part if isinstance(part, str) else tag for part in parts), images)


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture among the parts of a message."""

    source: ImageSource
    is_low_detail: bool = False  # one tile, whatever its size


Conversation = str | Sequence[Message | Mapping[str, Any]]
"""What `as_messages` takes."""


def as_messages(conversation: Conversation) -> list[Message]:
    """A conversation in any of its forms: one question as plain text, or a list of turns. A turn is a `Message`, or a
    dict {"role": "user", "content": "…", "images": […]}, whose pictures (if any) come before the text unless `<image>`
    tags place them.

    Raises: InvalidRequest.
    """
    if isinstance(conversation, str):
        return [Message("user", conversation)]
    if not isinstance(conversation, Sequence):
        raise InvalidRequest(f"messages are a {type(conversation).__name__}, but must be {_FORMS}", param="messages")
    return [turn if isinstance(turn, Message) else _message_of(turn) for turn in conversation]


_FORMS = 'a text or a list of Message(role, content, images) or of {"role": "user", "content": "…", "images": […]}'


def _message_of(turn: object) -> Message:
    if not isinstance(turn, Mapping) or not {"role", "content"} <= set(turn) <= {"role", "content", "images"}:
        raise InvalidRequest(f"a message is {turn!r:.100}, but messages must be {_FORMS}", param="messages")
    role, content, images = turn["role"], turn["content"], turn.get("images", ())
    if not isinstance(role, str) or not isinstance(content, str) or not isinstance(images, (list, tuple)):
        raise InvalidRequest(
            "role and content of a message must be text, and images a list of paths, bytes or PIL images",
            param="messages",
        )
    return Message.from_parts(role, [*(ImagePart(image) for image in images), content])


GrammarKind = Literal["json_object", "json_schema", "text_or_json", "choice", "regex", "grounding"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer can be: tokens that would leave it are ruled out before one is drawn.

    kind          spec
    json_object   ""                a JSON object
    json_schema   schema as JSON    JSON that the schema allows
    text_or_json  schema as JSON    the same, or any text that does not begin with {
    choice        ("yes", "no")     one of these texts
    regex         "[a-z]+"          text that the expression matches as a whole (Rust's dialect, without look-around)
    grounding     ""                any text; what it marks with <|ref|> has well-formed boxes

    Raises: InvalidRequest when kind and spec do not go together. Whether the spec itself is good is found out when a
    request is sent.
    """

    kind: GrammarKind
    spec: str | tuple[str, ...] = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(GrammarKind):
            kinds = ", ".join(get_args(GrammarKind))
            raise InvalidRequest(f"{self.kind!r} is no kind of grammar; kinds are {kinds}", param="grammar")
        if self.kind == "choice":
            is_good = isinstance(self.spec, tuple) and bool(self.spec) and all(self.spec)
            rule = "one or more non-empty texts"
        elif self.kind in ("json_schema", "text_or_json", "regex"):
            is_good, rule = isinstance(self.spec, str) and bool(self.spec), "a non-empty text"
        else:
            is_good, rule = not self.spec, "left out"
        if not is_good:
            raise InvalidRequest(f"the spec of a {self.kind} grammar must be {rule}", param="grammar")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. Defaults: greedy, as the official README generates.

    Order of application: logit bias → penalties → grammar → temperature → min-p, top-k → top-p. Logprobs are those of
    the raw logits. `repetition_penalty` counts prompt and output (`<image>` ids too); `presence_penalty` and
    `frequency_penalty` count the output only.

    Raises: InvalidRequest that names the field.
    """

    max_tokens: int | None = None  # None: until the context is full
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0  # 0: off
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None  # None: drawn once per request
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # None: off; 0..20: that many alternatives a token
    n: int = 1
    grammar: Grammar | None = None  # under one, `ignore_eos` goes on only as long as the grammar can

    def __post_init__(self) -> None:
        def check(name: str, is_good: bool, rule: str) -> None:
            if not is_good:
                raise InvalidRequest(f"{name} is {getattr(self, name)!r}, but must be {rule}", param=name)

        check("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1")
        check("temperature", 0 <= self.temperature <= 2, "between 0 and 2")
        check("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        check("top_k", self.top_k >= 0, "0 (off) or a positive count")
        check("min_p", 0 <= self.min_p <= 1, "between 0 and 1")
        check("repetition_penalty", 0 < self.repetition_penalty <= 10, "above 0 and at most 10")
        check("presence_penalty", -2 <= self.presence_penalty <= 2, "between -2 and 2")
        check("frequency_penalty", -2 <= self.frequency_penalty <= 2, "between -2 and 2")
        check("no_repeat_ngram_size", self.no_repeat_ngram_size >= 0, "0 (off) or a positive length")
        check("logit_bias", all(-100 <= b <= 100 for b in self.logit_bias.values()), "token ids → -100…100")
        check("seed", self.seed is None or -(2**63) <= self.seed < 2**63, "a 64-bit integer")
        check("stop", len(self.stop) <= 16 and all(self.stop), "at most 16 non-empty strings")
        check("logprobs", self.logprobs is None or 0 <= self.logprobs <= MAX_TOP_LOGPROBS, "between 0 and 20")
        check("n", 1 <= self.n <= 128, "between 1 and 128")


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Where one picture stands in a prompt.

    Its tokens are `start : start + length`; its tiles are `first_tile : first_tile + num_tiles` of `Prompt.tiles`, the
    global view first, then the local tiles row by row.
    """

    start: int  # position of its first token
    length: int  # tokens
    first_tile: int
    num_tiles: int
    tiles_wide: int
    tiles_high: int
    width: int  # of the picture as sent, pixels
    height: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model sees, ready for the engine."""

    token_ids: list[int]
    spans: tuple[ImageSpan, ...]
    tiles: np.ndarray  # [N, side, side, 3] uint8, RGB
    tile_keys: tuple[bytes, ...]  # BLAKE2b-256 of each tile's pixels, or of its file and place: equal key, equal tile

    @property
    def num_image_tokens(self) -> int:
        return sum(span.length for span in self.spans)


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """How a request waits, and what it may share.

    Raises: InvalidRequest that names the field.
    """

    priority: int = 0  # lower is sooner; a class later is worth PRIORITY_HEADSTART_S of waiting (engine/sequence.py)
    deadline_s: float | None = None  # the longest it may wait in the queue; then DeadlineExceeded
    cache_salt: str = ""  # requests with different salts share no prefix
    tenant: str = ""  # whose it is: tenants share neither prefixes nor encoded pictures

    def __post_init__(self) -> None:
        if not -100 <= self.priority <= 100:
            raise InvalidRequest(f"priority is {self.priority}, but must be between -100 and 100", param="priority")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise InvalidRequest(f"deadline_s is {self.deadline_s}, but must be above 0", param="deadline_s")


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One request as the engine takes it: `params.seed` and `params.max_tokens` are set by now."""

    request_id: str
    prompt: Prompt
    params: SamplingParams
    options: QueueOptions = QueueOptions()


# ---- up: what was answered ------------------------------------------------------------------------------------------


class FinishReason(str, Enum):
    STOP = "stop"  # EOS, a stop token or a stop string
    LENGTH = "length"  # max_tokens or the end of the context
    ABORT = "abort"  # cancelled by the caller


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Of one generated token, from the raw logits: its own log-probability (natural log) and the best alternatives."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), best first


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of an answer went, seconds."""

    queue_s: float  # until the first step that computed for it
    vision_s: float  # its share of the vision tower's work
    prefill_s: float  # until its first token, without the vision tower
    decode_s: float  # from the first token to the last


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One step's result for one choice of a request, or the error that ends the whole request."""

    request_id: str
    choice_idx: int = 0
    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0  # prompt tokens that were not computed again
    error: str | None = None
    is_expired: bool = False  # the error is that its deadline passed in the queue
    timing: Timing | None = None  # with a finish reason


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token with its text and log-probability, for API users. `bytes` of consecutive tokens concatenate exactly."""

    token_id: int
    text: str
    bytes: bytes
    logprob: float
    top: tuple[TokenText, ...] = ()


@dataclass(frozen=True, slots=True)
class Box:
    """Corners in pixels of the picture as sent: x1 ≤ x2, y1 ≤ y2."""

    x1: int
    y1: int
    x2: int
    y2: int


@dataclass(frozen=True, slots=True)
class GroundedObject:
    """A `<|ref|>label<|/ref|><|det|>…<|/det|>` of an answer."""

    label: str
    boxes: tuple[Box, ...]  # pixels
    boxes_norm: tuple[tuple[int, int, int, int], ...]  # 0…999, as the model wrote them


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    image_tokens: int = 0  # of prompt_tokens
    cached_tokens: int = 0  # of prompt_tokens
    timing: Timing | None = field(default=None, compare=False)  # of the choice that ended last
    is_from_result_cache: bool = False  # nothing was computed: the stored answer to the same request


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of one choice's answer. A whole answer is the fold of its deltas (`fold_deltas`).

    The first delta of a request carries `prompt_token_ids`; the last of each choice carries `finish_reason` and, where
    the answer holds well-formed grounding tags, `grounding`; the very last one carries `usage`.
    """

    choice_idx: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenText, ...] = ()
    finish_reason: FinishReason | None = None
    grounding: tuple[GroundedObject, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    usage: Usage | None = None
    stop_string: str | None = None  # of `SamplingParams.stop`, that ended the choice


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenText, ...] = ()
    grounding: tuple[GroundedObject, ...] | None = None
    stop_string: str | None = None  # of `SamplingParams.stop`, that ended it


@dataclass(frozen=True, slots=True)
class Completion:
    """All answers to one request."""

    choices: tuple[Choice, ...]
    usage: Usage
    prompt_token_ids: tuple[int, ...]

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text


def fold_deltas(deltas: list[Delta]) -> Completion:
    """Concatenate the deltas of one finished request, whatever the order in which its choices took turns."""
    usage = deltas[-1].usage
    assert usage is not None, "the last delta of a request carries its usage"
    choices = []
    for idx in range(1 + max(delta.choice_idx for delta in deltas)):
        own = [delta for delta in deltas if delta.choice_idx == idx]
        assert own[-1].finish_reason is not None, "the last delta of a choice carries its finish reason"
        choices.append(
            Choice(
                text="".join(delta.text for delta in own),
                token_ids=tuple(token_id for delta in own for token_id in delta.token_ids),
                finish_reason=own[-1].finish_reason,
                logprobs=tuple(entry for delta in own for entry in delta.logprobs),
                grounding=own[-1].grounding,
                stop_string=own[-1].stop_string,
            )
        )
    return Completion(tuple(choices), usage, deltas[0].prompt_token_ids or ())
