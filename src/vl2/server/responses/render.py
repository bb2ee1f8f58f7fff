"""Our answer → the Responses API's objects, whole or as the events that build them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vl2.core.errors import VL2Error
from vl2.core.types import Choice, Completion, Delta, FinishReason, TokenText, Usage
from vl2.server.errors import error_body
from vl2.server.events import encode
from vl2.server.openai.render import extras_json, grounding_json, logprobs_json
from vl2.server.responses.schema import ResponseRequest
from vl2.server.tools import CallReader, new_call_id, read_call

Json = dict[str, Any]


def response_head(body: ResponseRequest, response_id: str, model: str, has_tools: bool) -> Json:
    """All that is known before the answer."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "store": body.store is not False,
        "temperature": body.temperature or 0.0,
        "text": {"format": _format(body)},
        "tool_choice": _tool_choice(body) if has_tools else "none" if body.tools else "auto",
        "tools": [tool.model_dump() | {"strict": True} for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
    }


def _format(body: ResponseRequest) -> Json:
    form = body.text.format if body.text else None
    return {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)


def _tool_choice(body: ResponseRequest) -> Any:
    choice = body.tool_choice or "auto"
    return choice if isinstance(choice, str) else choice.model_dump()


def usage_json(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": 0,
            "image_tokens": usage.image_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        **extras_json(usage),
    }


def complete(head: Json, output: list[Json], finish_reason: FinishReason, usage: Usage) -> Json:
    is_whole = finish_reason is not FinishReason.LENGTH
    details = None if is_whole else {"reason": "max_output_tokens"}
    status = "completed" if is_whole else "incomplete"
    return head | {"status": status, "incomplete_details": details, "output": output, "usage": usage_json(usage)}


def text_part(text: str, logprobs: tuple[TokenText, ...] = (), grounding: Any = None) -> Json:
    part: Json = {"type": "output_text", "text": text, "annotations": []}
    part["logprobs"] = logprobs_json(logprobs)["content"]
    return part if grounding is None else part | {"grounding": grounding_json(grounding)}


def message_item(item_id: str, status: str, content: list[Json]) -> Json:
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def call_item(item_id: str, status: str, call_id: str, name: str, arguments: str) -> Json:
    head = {"id": item_id, "type": "function_call", "status": status}
    return head | {"call_id": call_id, "name": name, "arguments": arguments}


def output_of(choice: Choice, has_tools: bool) -> list[Json]:
    call = read_call(choice.text) if has_tools else None
    if call is not None:
        return [call_item(_item_id("fc"), "completed", new_call_id(), *call)]
    status = "incomplete" if choice.finish_reason is FinishReason.LENGTH else "completed"
    part = text_part(choice.text, choice.logprobs, choice.grounding)
    return [message_item(_item_id("msg"), status, [part])]


def response_json(head: Json, completion: Completion, has_tools: bool) -> Json:
    choice = completion.choices[0]
    return complete(head, output_of(choice, has_tools), choice.finish_reason, completion.usage)


def _item_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


@dataclass
class ResponseEvents:
    """Builds the response event by event. `on_finish` gets it when it is whole, before the last event goes out."""

    head: Json
    has_tools: bool
    on_finish: Callable[[Json], None]
    _sequence: int = 0
    _reader: CallReader = field(default_factory=CallReader)
    _item: Json | None = None
    _text: list[str] = field(default_factory=list)  # of the item: its text, or its arguments
    _logprobs: list[TokenText] = field(default_factory=list)

    def write(self, delta: Delta) -> Iterator[bytes]:
        if self._sequence == 0:
            yield self._event("response.created", response=self.head)
            yield self._event("response.in_progress", response=self.head)
        text, calls = self._reader.push(delta) if self.has_tools else (delta.text, [])
        self._logprobs += delta.logprobs
        for call in calls:
            if call.call_id is not None and call.name is not None:
                yield self._begin(call_item(_item_id("fc"), "in_progress", call.call_id, call.name, ""))
            if call.arguments:
                yield self._piece("response.function_call_arguments.delta", call.arguments)
        is_last = delta.finish_reason is not None
        if self._item is None and (text or is_last):
            yield self._begin(message_item(_item_id("msg"), "in_progress", []))
            yield self._event("response.content_part.added", **self._place(), part=text_part(""))
        if text:
            logprobs = logprobs_json(delta.logprobs)["content"]
            yield self._piece("response.output_text.delta", text, content_index=0, logprobs=logprobs)
        if is_last:
            yield from self._end(delta)

    def fail(self, error: VL2Error) -> bytes:
        told = error_body(error)["error"]
        failed = self.head | {"status": "failed", "error": {"code": told["code"], "message": told["message"]}}
        return self._event("response.failed", response=failed)

    def end(self) -> bytes:
        return b""

    def _end(self, delta: Delta) -> Iterator[bytes]:
        item, text = self._item, "".join(self._text)
        assert item is not None and delta.finish_reason is not None and delta.usage is not None
        status = "incomplete" if delta.finish_reason is FinishReason.LENGTH else "completed"
        if item["type"] == "function_call":
            item = item | {"status": status, "arguments": text}
            place = {"item_id": item["id"], "output_index": 0}
            yield self._event("response.function_call_arguments.done", **place, name=item["name"], arguments=text)
        else:
            part = text_part(text, tuple(self._logprobs), delta.grounding)
            item = item | {"status": status, "content": [part]}
            yield self._event("response.output_text.done", **self._place(), text=text, logprobs=part["logprobs"])
            yield self._event("response.content_part.done", **self._place(), part=part)
        yield self._event("response.output_item.done", output_index=0, item=item)
        response = complete(self.head, [item], delta.finish_reason, delta.usage)
        self.on_finish(response)
        yield self._event(f"response.{response['status']}", response=response)

    def _begin(self, item: Json) -> bytes:
        self._item = item
        return self._event("response.output_item.added", output_index=0, item=item)

    def _place(self) -> Json:
        assert self._item is not None
        return {"item_id": self._item["id"], "output_index": 0, "content_index": 0}

    def _piece(self, kind: str, text: str, **fields: Any) -> bytes:
        assert self._item is not None
        self._text.append(text)
        return self._event(kind, item_id=self._item["id"], output_index=0, **fields, delta=text)

    def _event(self, kind: str, **fields: Any) -> bytes:
        body = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return encode(body, kind)
