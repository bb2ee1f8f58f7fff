"""Our answer → Anthropic's message, whole or as the events that build it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vl2.core.errors import VL2Error
from vl2.core.types import Completion, Delta, FinishReason, Usage
from vl2.server.errors import anthropic_body, status_of
from vl2.server.events import encode
from vl2.server.openai.render import extras_json, grounding_json
from vl2.server.tools import CallReader, read_call

Json = dict[str, Any]


def message_json(message_id: str, model: str, completion: Completion, has_tools: bool) -> Json:
    choice = completion.choices[0]
    call = read_call(choice.text) if has_tools else None
    block: Json = {"type": "text", "text": choice.text}
    if choice.grounding is not None:
        block["grounding"] = grounding_json(choice.grounding)
    if call is not None:
        block = tool_block(new_tool_id(), call[0], json.loads(call[1]))
    reason = stop_reason(choice.finish_reason, choice.stop_string, call is not None)
    body = head_json(message_id, model, usage_json(completion.usage))
    return body | {"content": [block], "stop_reason": reason, "stop_sequence": choice.stop_string}


def head_json(message_id: str, model: str, usage: Json) -> Json:
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def usage_json(usage: Usage) -> Json:
    """Input tokens are those that were not cached, as Anthropic counts them."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
        **extras_json(usage),
    }


def stop_reason(finish_reason: FinishReason, stop_string: str | None, is_call: bool) -> str:
    if finish_reason is FinishReason.LENGTH:
        return "max_tokens"
    return "tool_use" if is_call else "end_turn" if stop_string is None else "stop_sequence"


def tool_block(tool_id: str, name: str, given: Json) -> Json:
    return {"type": "tool_use", "id": tool_id, "name": name, "input": given}


def new_tool_id() -> str:
    return f"toolu_{uuid.uuid4().hex[:24]}"


@dataclass
class MessageEvents:
    message_id: str
    model: str
    has_tools: bool
    _is_begun: bool = False
    _has_block: bool = False
    _reader: CallReader = field(default_factory=CallReader)

    def write(self, delta: Delta) -> Iterator[bytes]:
        if not self._is_begun:
            self._is_begun = True
            usage = usage_json(Usage(len(delta.prompt_token_ids or ()), 0))
            yield _event("message_start", message=head_json(self.message_id, self.model, usage))
        text, calls = self._reader.push(delta) if self.has_tools else (delta.text, [])
        for call in calls:
            if call.name is not None:
                yield from self._begin(tool_block(new_tool_id(), call.name, {}))
            if call.arguments:
                yield _block_delta({"type": "input_json_delta", "partial_json": call.arguments})
        if not self._has_block and (text or delta.finish_reason is not None):
            yield from self._begin({"type": "text", "text": ""})
        if text:
            yield _block_delta({"type": "text_delta", "text": text})
        if delta.finish_reason is not None:
            yield from self._end(delta, delta.finish_reason)

    def fail(self, error: VL2Error) -> bytes:
        return encode(anthropic_body(error.message, status_of(error)), "error")

    def end(self) -> bytes:
        return b""

    def _begin(self, block: Json) -> Iterator[bytes]:
        self._has_block = True
        yield _event("content_block_start", index=0, content_block=block)

    def _end(self, delta: Delta, finish_reason: FinishReason) -> Iterator[bytes]:
        assert delta.usage is not None
        yield _event("content_block_stop", index=0)
        reason = stop_reason(finish_reason, delta.stop_string, self._reader.call_id is not None)
        ending = {"stop_reason": reason, "stop_sequence": delta.stop_string}
        yield _event("message_delta", delta=ending, usage=usage_json(delta.usage))
        yield _event("message_stop")


def _event(kind: str, **fields: Any) -> bytes:
    return encode({"type": kind, **fields}, kind)


def _block_delta(delta: Json) -> bytes:
    return _event("content_block_delta", index=0, delta=delta)
