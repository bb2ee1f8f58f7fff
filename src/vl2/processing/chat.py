"""Messages → token ids with gaps for the pictures: DeepSeek-VL2's chat format.

    BOS
    system c:     encode(c)                                        only first; runs into what follows
    user c:       encode("<|User|>: " + c + "\\n\\n<|Assistant|>:")   c empty: "<|User|>:<|Assistant|>:"
    assistant c:  encode(c) + EOS                                  the last one: no EOS, the answer continues it

Contents are stripped of outer white space. User text is cut at `<image>`, and each piece is encoded by itself.
Grounding tags in a content become those tokens. The text of other special tokens stays text, so that nobody can play a
role that is not theirs; with `is_official` it becomes those tokens too, as in the official code.
Source: `format_messages_v2` and `tokenize_with_images` of the official `processing_deepseek_vl_v2.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vl2.core.errors import InvalidRequest
from vl2.core.types import IMAGE_TAG, ROLES, Message
from vl2.processing.tokenizer import ASSISTANT, USER, Tokenizer


def chat_segments(messages: Sequence[Message], tokenizer: Tokenizer, *, is_official: bool = False) -> list[list[int]]:
    """The ids before, between and after the pictures of a conversation: one list more than it has pictures.

    A last user message is followed by the answer; a last assistant message is the beginning of the answer.

    Raises: InvalidRequest for a conversation that the format has no place for.
    """
    check_messages(messages)
    encode = tokenizer.encode if is_official else tokenizer.encode_plain
    segments = [[tokenizer.bos_id]]
    for idx, message in enumerate(messages):
        content = message.content.strip()
        if message.role == "user":
            segments[-1].append(tokenizer.tag_ids[USER])
            append_text(segments, f": {content}\n\n" if content else ":", encode)
            segments[-1] += [tokenizer.tag_ids[ASSISTANT], *encode(":")]
        else:
            segments[-1] += encode(content)
            if message.role == "assistant" and idx < len(messages) - 1:
                segments[-1].append(tokenizer.eos_id)
    return segments


def text_segments(text: str, num_images: int, tokenizer: Tokenizer) -> list[list[int]]:
    """The same of a plain prompt: BOS and the text as it is, without roles.

    Raises: InvalidRequest.
    """
    _check_content("the prompt", text, num_images)
    segments = [[tokenizer.bos_id]]
    append_text(segments, text, tokenizer.encode)
    return segments


def append_text(segments: list[list[int]], text: str, encode: Callable[[str], list[int]]) -> None:
    """Cut `text` at its pictures; the first piece continues the last segment."""
    first, *others = (encode(piece) for piece in text.split(IMAGE_TAG))
    segments[-1] += first
    segments += others


def check_messages(messages: Sequence[Message]) -> None:
    """Raises: InvalidRequest that says which message is wrong, and how."""
    if not messages:
        raise InvalidRequest("messages is empty; send at least one user message", param="messages")
    for idx, message in enumerate(messages):
        name = f"message {idx + 1}"
        if message.role not in ROLES:
            raise InvalidRequest(
                f"{name} has the role {message.role!r}; roles are {', '.join(ROLES)}", param=f"messages[{idx}].role"
            )
        if message.role == "system" and idx > 0:
            raise InvalidRequest(
                f"{name} is a system message, but only the first one may be", param=f"messages[{idx}].role"
            )
        if message.role != "user" and (message.images or IMAGE_TAG in message.content):
            raise InvalidRequest(
                f"{name} ({message.role}) holds a picture or {IMAGE_TAG} tag; only user messages may",
                param=f"messages[{idx}].content",
            )
        _check_content(name, message.content, len(message.images), f"messages[{idx}].content")
    if messages[-1].role == "system":
        raise InvalidRequest("the conversation has no question; add a user message", param="messages")


def _check_content(name: str, text: str, num_images: int, param: str = "prompt") -> None:
    num_tags = text.count(IMAGE_TAG)
    if num_tags != num_images:
        raise InvalidRequest(
            f"{name} has {num_tags} {IMAGE_TAG} tags but {num_images} pictures; write one tag for each picture",
            param=param,
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest(f"{name} holds a lone surrogate, which is no Unicode character", param=param) from None
