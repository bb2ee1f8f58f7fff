"""OpenAI's request → our messages and parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vl2.core.errors import InvalidRequest
from vl2.core.types import MAX_TOP_LOGPROBS, QueueOptions, SamplingParams
from vl2.server.chat import Question
from vl2.server.fields import check_fields
from vl2.server.openai import schema
from vl2.server.openai.grammars import to_grammar
from vl2.server.tools import ANY_OBJECT, Tool, Tools, call_text, make_tools, result_text
from vl2.server.turns import Reference, Turn

SAME_IN_BOTH = (
    "n",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "min_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "ignore_eos",
)
"""Fields with the same name and meaning in ChatRequest and SamplingParams; absent or null, the latter's default."""

MAX_STOP_STRINGS = 16


def check_body(body: schema.ChatRequest) -> list[str]:
    """Refuse what cannot be honoured; returns the fields without effect. Raises: InvalidRequest."""
    ignored = check_fields(body)
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    _check_continuation(body)
    for idx, message in enumerate(body.messages):
        for name, value in (message.model_extra or {}).items():
            if value:
                path = f"messages[{idx}].{name}"
                raise InvalidRequest(f"{path} is not supported by this server; leave it out", param=path)
    return ignored


def _check_continuation(body: schema.ChatRequest) -> None:
    is_continued = body.messages[-1].role == "assistant"
    fate = "the assistant's, which is always continued" if is_continued else "not the assistant's, so it is answered"
    wanted = {"continue_final_message": is_continued, "add_generation_prompt": not is_continued}
    for name, value in wanted.items():
        if getattr(body, name) not in (None, value):
            sent = "false" if value else "true"
            raise InvalidRequest(f"{name} is {sent}, but the last message is {fate}; leave {name} out", param=name)


# ---- parameters -----------------------------------------------------------------------------------------------------


def to_params(body: schema.ChatRequest) -> SamplingParams:
    """Raises: InvalidRequest that names the field."""
    given: dict[str, Any] = {name: value for name in SAME_IN_BOTH if (value := getattr(body, name)) is not None}
    return SamplingParams(
        max_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        top_k=max(0, body.top_k or 0),
        stop=_stop(body.stop),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        logit_bias=_logit_bias(body.logit_bias or {}),
        logprobs=_num_logprobs(body),
        grammar=to_grammar(body),
        **given,
    )


def to_options(body: schema.ChatRequest) -> QueueOptions:
    """Raises: InvalidRequest that names the field."""
    return QueueOptions(priority=body.priority or 0, deadline_s=body.deadline_s, cache_salt=body.cache_salt or "")


def _stop(given: str | list[str] | None) -> tuple[str, ...]:
    stop = (given,) if isinstance(given, str) else tuple(given or ())
    if len(stop) > MAX_STOP_STRINGS or not all(stop):
        wrong = '""' if not all(stop) else f"{len(stop)} strings"
        raise InvalidRequest(f"stop has {wrong}, but takes at most {MAX_STOP_STRINGS} non-empty strings", param="stop")
    return stop


def _logit_bias(given: dict[str, float]) -> dict[int, float]:
    wrong = next((key for key in given if not (key.isascii() and key.isdecimal() and len(key) < 10)), None)
    if wrong is not None:
        raise InvalidRequest(f"logit_bias has the key {wrong[:40]!r}, but must map token ids", param="logit_bias")
    for key, bias in given.items():
        if not -100 <= bias <= 100:
            raise InvalidRequest(f"logit_bias[{key}] is {bias:g}, but must be between -100 and 100", param="logit_bias")
    return {int(key): bias for key, bias in given.items()}


def check_top_logprobs(top: int | None) -> None:
    """Raises: InvalidRequest."""
    if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(
            f"top_logprobs is {top}, but must be between 0 and {MAX_TOP_LOGPROBS}", param="top_logprobs"
        )


def _num_logprobs(body: schema.ChatRequest) -> int | None:
    top = body.top_logprobs
    check_top_logprobs(top)
    if top and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    return (top or 0) if body.logprobs else None


# ---- messages -------------------------------------------------------------------------------------------------------


def to_turns(messages: Sequence[schema.ChatMessage]) -> list[Turn]:
    """Raises: InvalidRequest; `param` is the path of the field."""
    names: dict[str, str] = {}  # of the tools that were called, by the call's id
    return [_turn(message, f"messages[{idx}]", names) for idx, message in enumerate(messages)]


def _turn(message: schema.ChatMessage, path: str, names: dict[str, str]) -> Turn:
    content = [message.content] if isinstance(message.content, str) else message.content
    parts = [_part(part, f"{path}.content[{idx}]") for idx, part in enumerate(content)]
    if message.tool_calls and message.role != "assistant":
        raise InvalidRequest(f"{path}.tool_calls stands in a {message.role} message", param=f"{path}.tool_calls")
    for call in message.tool_calls or ():
        names[call.id] = call.function.name
        parts.append(call_text(call.function.name, call.function.arguments))
    if message.role == "tool":
        if message.tool_call_id not in names:
            raise InvalidRequest(
                f"{path}.tool_call_id must be the id of a call before it", param=f"{path}.tool_call_id"
            )
        return Turn("user", (result_text(names[message.tool_call_id], ""), *parts))
    return Turn("system" if message.role == "developer" else message.role, tuple(parts))


def _part(part: str | schema.TextPart | schema.ImagePart | schema.FilePart, path: str) -> str | Reference:
    if isinstance(part, str):
        return part
    if isinstance(part, schema.TextPart):
        return part.text
    if isinstance(part, schema.ImagePart):
        given = part.image_url
        return Reference(f"{path}.image_url.url", url=given.url, is_low_detail=given.detail == "low")
    file = part.file
    return Reference(f"{path}.file", url=file.file_url, data=file.file_data, file_id=file.file_id, pages=file.pages)


def to_tools(body: schema.ChatRequest) -> Tools | None:
    """Raises: InvalidRequest."""
    tools = [
        Tool(tool.function.name, tool.function.description or "", tool.function.parameters or ANY_OBJECT)
        for tool in body.tools or ()
    ]
    choice = body.tool_choice or "auto"
    return make_tools(tools, choice if isinstance(choice, str) else choice.function.name, "tools")


def to_question(body: schema.ChatRequest) -> Question:
    """Raises: InvalidRequest that names the field."""
    return Question(to_turns(body.messages), to_params(body), to_options(body), to_tools(body))
