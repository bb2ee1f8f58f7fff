"""Our answer → OpenAI's JSON, whole or in chunks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vl2.core.types import Choice, Completion, Delta, FinishReason, GroundedObject, TokenText, Usage
from vl2.server.tools import CallDelta, CallReader, new_call_id, read_call

MIN_LOGPROB = -9999.0  # JSON has no -Infinity; OpenAI uses this number

Json = dict[str, Any]


@dataclass
class ChatRenderer:
    """Writes one answer. The same fields stand in all of its chunks."""

    answer_id: str
    created: int
    model: str
    fingerprint: str | None = None  # the reproducibility receipt
    has_logprobs: bool = False
    has_token_ids: bool = False
    has_usage_chunk: bool = False
    has_tools: bool = False  # then an answer may be a call
    _readers: dict[int, CallReader] = field(default_factory=dict)
    _started: set[int] = field(default_factory=set)  # choices whose first chunk is out

    def completion(self, completion: Completion) -> Json:
        body = self._head("chat.completion")
        body["choices"] = [self._choice(idx, choice) for idx, choice in enumerate(completion.choices)]
        body["usage"] = usage_json(completion.usage)
        if self.has_token_ids:
            body["prompt_token_ids"] = list(completion.prompt_token_ids)
        return body

    def chunks(self, delta: Delta) -> Iterator[Json]:
        """The first chunk of each choice has its role, the last its finish reason; the very last one the usage."""
        is_first = not self._started
        if delta.choice_idx not in self._started:
            self._started.add(delta.choice_idx)
            chunk = self._chunk(delta.choice_idx, {"role": "assistant", "content": ""})
            if is_first and self.has_token_ids:
                chunk["prompt_token_ids"] = list(delta.prompt_token_ids or ())
            yield chunk
        message = self._message_of(delta)
        if self._says_something(delta, message):
            yield self._chunk_of(delta, message)
        if delta.usage is not None and self.has_usage_chunk:
            yield {**self._head("chat.completion.chunk"), "choices": [], "usage": usage_json(delta.usage)}

    def plain(self, delta: Delta) -> str | None:
        """The text, if it is all that this piece adds to a choice that has begun; None where `chunks` is needed."""
        is_plain = (
            delta.finish_reason is None
            and delta.usage is None
            and delta.choice_idx in self._started
            and not (self.has_tools or self.has_logprobs or self.has_token_ids)
        )
        return delta.text if is_plain else None

    def plain_chunk(self, choice_idx: int, text: str) -> Json:
        return self._chunk(choice_idx, {"content": text})

    def _says_something(self, delta: Delta, message: Json) -> bool:
        has_tokens = bool(delta.token_ids) and (self.has_token_ids or self.has_logprobs)
        return bool(message) or delta.finish_reason is not None or has_tokens

    def _message_of(self, delta: Delta) -> Json:
        if not self.has_tools:
            return {"content": delta.text} if delta.text else {}
        text, calls = self._readers.setdefault(delta.choice_idx, CallReader()).push(delta)
        message: Json = {"content": text} if text else {}
        if calls:
            message["tool_calls"] = [call_chunk(calls)]
        return message

    def _finish_reason(self, delta: Delta) -> str | None:
        if delta.finish_reason is None:
            return None
        reader = self._readers.get(delta.choice_idx)
        is_call = reader is not None and reader.call_id is not None and delta.finish_reason is FinishReason.STOP
        return "tool_calls" if is_call else delta.finish_reason.value

    def _chunk_of(self, delta: Delta, message: Json) -> Json:
        if delta.grounding is not None:
            message["grounding"] = grounding_json(delta.grounding)
        chunk = self._chunk(delta.choice_idx, message)
        choice = chunk["choices"][0]
        if self.has_logprobs and delta.logprobs:
            choice["logprobs"] = logprobs_json(delta.logprobs)
        if self.has_token_ids:
            choice["token_ids"] = list(delta.token_ids)
        choice["finish_reason"] = self._finish_reason(delta)
        return chunk

    def _chunk(self, choice_idx: int, message: Json) -> Json:
        chunk = self._head("chat.completion.chunk")
        chunk["choices"] = [{"index": choice_idx, "delta": message, "logprobs": None, "finish_reason": None}]
        if self.has_usage_chunk:
            chunk["usage"] = None
        return chunk

    def _choice(self, idx: int, choice: Choice) -> Json:
        grounding = None if choice.grounding is None else grounding_json(choice.grounding)
        message: Json = {"role": "assistant", "content": choice.text, "refusal": None, "grounding": grounding}
        call = read_call(choice.text) if self.has_tools else None
        if call is not None:
            message |= {"content": None, "tool_calls": [call_json(new_call_id(), *call)]}
        body: Json = {
            "index": idx,
            "message": message,
            "logprobs": logprobs_json(choice.logprobs) if self.has_logprobs else None,
            "finish_reason": "tool_calls" if call is not None else choice.finish_reason.value,
        }
        if self.has_token_ids:
            body["token_ids"] = list(choice.token_ids)
        return body

    def _head(self, kind: str) -> Json:
        return {
            "id": self.answer_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def call_json(call_id: str, name: str, arguments: str) -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def call_chunk(calls: list[CallDelta]) -> Json:
    """The pieces of the one call of an answer that came together."""
    arguments = "".join(call.arguments for call in calls)
    first = calls[0]
    if first.call_id is None or first.name is None:
        return {"index": 0, "function": {"arguments": arguments}}
    return {"index": 0, **call_json(first.call_id, first.name, arguments)}


def usage_json(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"image_tokens": usage.image_tokens, "cached_tokens": usage.cached_tokens},
        **extras_json(usage),
    }


def extras_json(usage: Usage) -> Json:
    """What stands in a usage only if there is something to say."""
    extras: Json = {}
    if usage.timing is not None:
        extras["timing"] = {name: round(value, 6) for name, value in dataclasses.asdict(usage.timing).items()}
    if usage.is_from_result_cache:
        extras["from_result_cache"] = True
    return extras


def logprobs_json(tokens: tuple[TokenText, ...]) -> Json:
    return {
        "content": [
            {**_token_json(token), "top_logprobs": [_token_json(top) for top in token.top]} for token in tokens
        ],
        "refusal": None,
    }


def _token_json(token: TokenText) -> Json:
    return {"token": token.text, "logprob": max(token.logprob, MIN_LOGPROB), "bytes": list(token.bytes)}


def grounding_json(objects: tuple[GroundedObject, ...]) -> list[Json]:
    return [
        {
            "label": found.label,
            "boxes": [[box.x1, box.y1, box.x2, box.y2] for box in found.boxes],
            "boxes_norm": [list(box) for box in found.boxes_norm],
        }
        for found in objects
    ]
