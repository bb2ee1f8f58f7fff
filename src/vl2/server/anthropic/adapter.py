"""Anthropic's request → our question."""

from __future__ import annotations

import json
from typing import Any

from vl2.core.errors import InvalidRequest
from vl2.core.types import Grammar, SamplingParams
from vl2.server.anthropic import schema
from vl2.server.chat import Question
from vl2.server.openai.adapter import MAX_STOP_STRINGS
from vl2.server.tools import Tool, Tools, call_text, make_tools, result_text
from vl2.server.turns import Reference, Turn

CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def to_question(body: schema.CountRequest) -> Question:
    """Raises: InvalidRequest that names the field."""
    system = body.system if isinstance(body.system, str) else "\n".join(block.text for block in body.system or ())
    turns = [Turn("system", (system,))] if system else []
    names: dict[str, str] = {}  # of the tools that were used, by the use's id
    for idx, message in enumerate(body.messages):
        content = [message.content] if isinstance(message.content, str) else message.content
        parts = [_part(part, f"messages[{idx}].content[{at}]", names) for at, part in enumerate(content)]
        turns.append(Turn(message.role, tuple(item for part in parts for item in part)))
    params = _params(body) if isinstance(body, schema.MessagesRequest) else SamplingParams()
    return Question(turns, params, tools=_tools(body))


def _part(part: Any, path: str, names: dict[str, str]) -> list[str | Reference]:
    if isinstance(part, str):
        return [part]
    if isinstance(part, schema.TextBlock):
        return [part.text]
    if isinstance(part, schema.ImageBlock):
        return [_source(part, f"{path}.source")]
    if isinstance(part, schema.DocumentBlock):
        about = [text + "\n" for text in (part.title, part.context) if text]
        return [*about, _source(part, f"{path}.source")]
    if isinstance(part, schema.ToolUseBlock):
        names[part.id] = part.name
        return [call_text(part.name, json.dumps(part.input, ensure_ascii=False))]
    if part.tool_use_id not in names:
        raise InvalidRequest(f"{path}.tool_use_id must be the id of a tool_use before it", param=f"{path}.tool_use_id")
    content = [part.content] if isinstance(part.content, str) else part.content
    inner = [item for idx, block in enumerate(content) for item in _part(block, f"{path}.content[{idx}]", names)]
    return [result_text(names[part.tool_use_id], "an error: " if part.is_error else ""), *inner, "\n"]


def _source(block: schema.ImageBlock | schema.DocumentBlock, path: str) -> str | Reference:
    source = block.source
    pages = block.pages if isinstance(block, schema.DocumentBlock) else None
    given = {"base64": source.data, "url": source.url, "text": source.data, "file": source.file_id}[source.type]
    if given is None:
        raise InvalidRequest(f"{path} of type {source.type} lacks its data", param=path)
    if source.type == "text":
        if not isinstance(block, schema.DocumentBlock):
            raise InvalidRequest(f"{path}.type is 'text', which is no picture", param=f"{path}.type")
        return given
    if source.type == "base64":
        return Reference(path, data=given, pages=pages)
    if source.type == "url":
        return Reference(path, url=given, pages=pages)
    return Reference(path, file_id=given, pages=pages)


def _tools(body: schema.CountRequest) -> Tools | None:
    tools = [Tool(tool.name, tool.description or "", tool.input_schema) for tool in body.tools or ()]
    choice = body.tool_choice
    if choice is None:
        return make_tools(tools, "auto", "tools")
    if choice.type == "tool" and choice.name is None:
        raise InvalidRequest("tool_choice.name is missing", param="tool_choice.name")
    return make_tools(tools, choice.name or "" if choice.type == "tool" else CHOICES[choice.type], "tools")


def _params(body: schema.MessagesRequest) -> SamplingParams:
    names = ("temperature", "top_p", "top_k", "seed")
    given = {name: value for name in names if (value := getattr(body, name)) is not None}
    stop = tuple(body.stop_sequences or ())
    if len(stop) > MAX_STOP_STRINGS or not all(stop):
        raise InvalidRequest(
            f"stop_sequences takes at most {MAX_STOP_STRINGS} non-empty strings", param="stop_sequences"
        )
    grammar = Grammar("grounding") if body.grounding else None
    return SamplingParams(max_tokens=body.max_tokens, stop=stop, grammar=grammar, **given)
