"""Our answer → OpenAI's JSON, whole or in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vl2.core.types import Choice, Completion, Delta, GroundedObject, TokenText, Usage

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
        if self._says_something(delta):
            yield self._chunk_of(delta)
        if delta.usage is not None and self.has_usage_chunk:
            yield {**self._head("chat.completion.chunk"), "choices": [], "usage": usage_json(delta.usage)}

    def _says_something(self, delta: Delta) -> bool:
        has_tokens = bool(delta.token_ids) and (self.has_token_ids or self.has_logprobs)
        return bool(delta.text) or delta.finish_reason is not None or has_tokens

    def _chunk_of(self, delta: Delta) -> Json:
        message: Json = {"content": delta.text} if delta.text else {}
        if delta.grounding is not None:
            message["grounding"] = grounding_json(delta.grounding)
        chunk = self._chunk(delta.choice_idx, message)
        choice = chunk["choices"][0]
        if self.has_logprobs and delta.logprobs:
            choice["logprobs"] = logprobs_json(delta.logprobs)
        if self.has_token_ids:
            choice["token_ids"] = list(delta.token_ids)
        if delta.finish_reason is not None:
            choice["finish_reason"] = delta.finish_reason.value
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
        body: Json = {
            "index": idx,
            "message": message,
            "logprobs": logprobs_json(choice.logprobs) if self.has_logprobs else None,
            "finish_reason": choice.finish_reason.value,
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


def usage_json(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"image_tokens": usage.image_tokens, "cached_tokens": usage.cached_tokens},
    }


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
