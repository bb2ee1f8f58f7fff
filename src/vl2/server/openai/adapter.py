"""OpenAI's request → our messages and parameters."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from vl2.core.errors import InvalidRequest, VL2Error
from vl2.core.types import MAX_TOP_LOGPROBS, ImagePart, Message, QueueOptions, SamplingParams
from vl2.server.errors import did_you_mean
from vl2.server.fetch import Fetch
from vl2.server.openai import schema
from vl2.server.openai.grammars import to_grammar

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
MAX_PARALLEL_FETCHES = 8  # of one request


def check_fields(body: schema.ChatRequest) -> None:
    """Refuse what cannot be honoured. Raises: InvalidRequest."""
    for name, value in (body.model_extra or {}).items():
        if name in schema.HINTS or (name in schema.REFUSED and (value is None or value in schema.REFUSED[name])):
            continue
        if name in schema.REFUSED:
            reason = schema.REASONS.get(name, "is not supported by this server")
            raise InvalidRequest(f"{name} {reason}; leave it out", param=name)
        hint = did_you_mean(name, [*schema.ChatRequest.model_fields, *schema.HINTS])
        raise InvalidRequest(f"{name} is not a field of this API{hint}", param=name)
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    _check_continuation(body)
    for idx, message in enumerate(body.messages):
        for name, value in (message.model_extra or {}).items():
            if value and name not in ("grounding", "annotations"):
                path = f"messages[{idx}].{name}"
                raise InvalidRequest(f"{path} is not supported by this server; leave it out", param=path)


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


def _num_logprobs(body: schema.ChatRequest) -> int | None:
    top = body.top_logprobs
    if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(
            f"top_logprobs is {top}, but must be between 0 and {MAX_TOP_LOGPROBS}", param="top_logprobs"
        )
    if top and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    return (top or 0) if body.logprobs else None


# ---- messages -------------------------------------------------------------------------------------------------------


def picture_urls(messages: Sequence[schema.ChatMessage]) -> dict[str, str]:
    """Path of the field → URL, for every picture in order."""
    return {
        f"messages[{message_idx}].content[{part_idx}].image_url.url": part.image_url.url
        for message_idx, message in enumerate(messages)
        for part_idx, part in enumerate(message.content)
        if isinstance(part, schema.ImagePart)
    }


async def to_messages(messages: Sequence[schema.ChatMessage], fetch: Fetch) -> list[Message]:
    """Raises: InvalidRequest, InvalidImage, TooLarge; `param` is the path of the field."""
    gate = asyncio.Semaphore(MAX_PARALLEL_FETCHES)

    async def fetch_one(path: str, url: str) -> bytes:
        async with gate:
            try:
                return await fetch(url)
            except VL2Error as error:
                error.param = error.param or path
                raise

    pictures = iter(await _all(fetch_one(path, url) for path, url in picture_urls(messages).items()))
    converted = []
    for message in messages:
        content = [message.content] if isinstance(message.content, str) else message.content
        parts = [
            part
            if isinstance(part, str)
            else part.text
            if isinstance(part, schema.TextPart)
            else ImagePart(next(pictures))
            for part in content
        ]
        converted.append(Message.from_parts("system" if message.role == "developer" else message.role, parts))
    return converted


async def _all(work: Iterable[Coroutine[Any, Any, bytes]]) -> list[bytes]:
    """Results in order; the first failure cancels the rest."""
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
