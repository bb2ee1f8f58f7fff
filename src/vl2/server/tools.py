"""Tool calls: the model was not trained for them, so they are told in the system message and held by a grammar.

A call is written `{"name": "…", "arguments": {…}}`, which the grammar allows for the declared tools and their schemas
only. With choice "auto" an answer is either such a call, or any text that does not begin with `{`.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vl2.core.errors import InvalidRequest
from vl2.core.types import Delta, Grammar, Message

MAX_TOOLS = 128
ANY_OBJECT = {"type": "object"}
NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@dataclass(frozen=True)
class Tool:
    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Tools:
    """`choice`: auto, required, or the name of the tool that must be called."""

    tools: tuple[Tool, ...]
    choice: str = "auto"

    def prompt(self) -> str:
        lines = [
            json.dumps(
                {"name": tool.name, "description": tool.description, "parameters": tool.parameters}, ensure_ascii=False
            )
            for tool in self.tools
        ]
        rule = "To call one" if self.choice == "auto" else "Call one:"
        return (
            "You can call these functions:\n" + "\n".join(lines) + f"\n{rule}, answer only with "
            '{"name": the function, "arguments": {its arguments}}.'
        )

    def grammar(self) -> Grammar:
        chosen = [tool for tool in self.tools if self.choice in ("auto", "required", tool.name)]
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": tool.parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in chosen
        ]
        schema = json.dumps(calls[0] if len(calls) == 1 else {"anyOf": calls}, ensure_ascii=False)
        return Grammar("text_or_json" if self.choice == "auto" else "json_schema", schema)


def make_tools(tools: Sequence[Tool], choice: str, path: str) -> Tools | None:
    """None: no tool may be called. Raises: InvalidRequest; `path` names the field of the list."""
    if choice == "none" or (not tools and choice == "auto"):
        return None
    if not tools:
        raise InvalidRequest("tool_choice asks for a call, but there are no tools", param="tool_choice")
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"{path} has {len(tools)} entries; at most {MAX_TOOLS} are taken", param=path)
    names = [tool.name for tool in tools]
    for idx, name in enumerate(names):
        if not NAME.fullmatch(name):
            raise InvalidRequest(f"{path}[{idx}] has a name of other characters than A-Z a-z 0-9 _ . : -", param=path)
        if names.index(name) != idx:
            raise InvalidRequest(f"{path} has two tools of the name {name!r}", param=path)
    if choice not in ("auto", "required", *names):
        raise InvalidRequest(f"tool_choice names {choice[:64]!r}, which is none of the tools", param="tool_choice")
    return Tools(tuple(tools), choice)


def with_tools(messages: list[Message], tools: Tools) -> list[Message]:
    """The conversation, with the tools told in its system message."""
    if messages and messages[0].role == "system":
        first = replace(messages[0], content=f"{tools.prompt()}\n\n{messages[0].content}")
        return [first, *messages[1:]]
    return [Message("system", tools.prompt() + "\n\n"), *messages]


def call_text(name: str, arguments: str) -> str:
    """A call of an earlier turn, as the model would have written it."""
    return '{"name": ' + json.dumps(name, ensure_ascii=False) + ', "arguments": ' + (arguments.strip() or "{}") + "}"


def result_text(name: str, content: str) -> str:
    """What a tool gave back, as the user tells it."""
    return f"The result of {name}: {content}"


# ---- reading an answer ----------------------------------------------------------------------------------------------

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of a call. The first one has the name and the id."""

    arguments: str = ""
    name: str | None = None
    call_id: str | None = None


class CallReader:
    """Tells text from calls while an answer comes, piece by piece; one for each choice."""

    def __init__(self) -> None:
        self._held = ""  # the beginning of what may be a call; later the end, which is no part of the arguments
        self._is_text = False
        self.call_id: str | None = None

    def push(self, delta: Delta) -> tuple[str, list[CallDelta]]:
        """Text to show, and pieces of the call."""
        is_last = delta.finish_reason is not None
        if self._is_text:
            return delta.text, []
        self._held += delta.text
        if self.call_id is not None:
            return "", self._arguments(is_last)
        begun = self._held.lstrip()
        if begun and not begun.startswith("{"):
            self._is_text = True
        elif (head := _HEAD.match(self._held)) is not None:
            self.call_id = new_call_id()
            self._held = self._held[head.end() :]
            name: str = json.loads(head[1])
            return "", [CallDelta(name=name, call_id=self.call_id), *self._arguments(is_last)]
        elif not is_last:
            return "", []
        text, self._held = self._held, ""
        return text, []

    def _arguments(self, is_last: bool) -> list[CallDelta]:
        """All but the last `}`, which closes the call around them; white space may follow it."""
        end = len(self._held.rstrip())
        if end and self._held[end - 1] == "}":
            end -= 1
        elif is_last:  # cut off by its length
            end = len(self._held)
        text, self._held = self._held[:end], self._held[end:]
        if is_last:
            self._held = ""
        return [CallDelta(arguments=text)] if text else []


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def read_call(text: str) -> tuple[str, str] | None:
    """Name and arguments of a whole answer that is a call; None for text, and for a call that was cut off."""
    head = _HEAD.match(text)
    body = text.rstrip()
    if head is None or not body.endswith("}"):
        return None
    return json.loads(head[1]), body[head.end() : -1].strip()
