"""The Responses API's request → our question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vl2.core.errors import InvalidRequest
from vl2.core.types import Grammar, QueueOptions, SamplingParams
from vl2.server.chat import Question
from vl2.server.openai.adapter import check_top_logprobs
from vl2.server.openai.grammars import schema_text
from vl2.server.responses import schema
from vl2.server.tools import ANY_OBJECT, Tool, Tools, call_text, make_tools, result_text
from vl2.server.turns import Reference, Turn

LOGPROBS = "message.output_text.logprobs"


def to_question(body: schema.InputRequest, before: Sequence[Turn] = ()) -> Question:
    """`before`: the conversation that it goes on with. Raises: InvalidRequest that names the field."""
    params = _params(body) if isinstance(body, schema.ResponseRequest) else SamplingParams()
    options = QueueOptions()
    if isinstance(body, schema.ResponseRequest):
        options = QueueOptions(priority=body.priority or 0, cache_salt=body.cache_salt or "")
    instructions = [Turn("system", (body.instructions,))] if body.instructions else []
    return Question([*instructions, *before, *to_turns(body.input)], params, options, _tools(body))


def to_turns(given: str | list[Any]) -> list[Turn]:
    """Raises: InvalidRequest."""
    if isinstance(given, str):
        return [Turn("user", (given,))]
    if not given:
        raise InvalidRequest("input must have at least one entry", param="input")
    names: dict[str, str] = {}  # of the called functions, by the call's id
    return [_turn(item, f"input[{idx}]", names) for idx, item in enumerate(given)]


def _turn(item: Any, path: str, names: dict[str, str]) -> Turn:
    if isinstance(item, schema.CallItem):
        names[item.call_id] = item.name
        return Turn("assistant", (call_text(item.name, item.arguments),))
    if isinstance(item, schema.CallOutputItem):
        name = names.get(item.call_id, "the call")
        if isinstance(item.output, str):
            return Turn("user", (result_text(name, item.output),))
        return Turn("user", (result_text(name, ""), *_parts(item.output, f"{path}.output")))
    return Turn("system" if item.role == "developer" else item.role, _parts(item.content, f"{path}.content"))


def _parts(content: str | list[Any], path: str) -> tuple[str | Reference, ...]:
    given = [content] if isinstance(content, str) else content
    return tuple(_part(part, f"{path}[{idx}]") for idx, part in enumerate(given))


def _part(part: Any, path: str) -> str | Reference:
    if isinstance(part, str):
        return part
    if isinstance(part, schema.InputImage):
        return Reference(path, url=part.image_url, file_id=part.file_id, is_low_detail=part.detail == "low")
    if isinstance(part, schema.InputFile):
        is_low = part.detail == "low"
        return Reference(path, part.file_url, part.file_data, part.file_id, part.pages, is_low_detail=is_low)
    text: str = part.text
    return text


def _tools(body: schema.InputRequest) -> Tools | None:
    tools = [Tool(tool.name, tool.description or "", tool.parameters or ANY_OBJECT) for tool in body.tools or ()]
    choice = body.tool_choice or "auto"
    return make_tools(tools, choice if isinstance(choice, str) else choice.name, "tools")


def _params(body: schema.ResponseRequest) -> SamplingParams:
    given = {name: value for name in ("temperature", "top_p", "seed") if (value := getattr(body, name)) is not None}
    top = body.top_logprobs
    check_top_logprobs(top)
    has_logprobs = bool(top) or LOGPROBS in (body.include or ())
    return SamplingParams(
        max_tokens=body.max_output_tokens,
        logprobs=(top or 0) if has_logprobs else None,
        grammar=_grammar(body),
        **given,
    )


def _grammar(body: schema.ResponseRequest) -> Grammar | None:
    form = body.text.format if body.text else None
    is_free = form is None or form.type == "text"
    if body.grounding:
        if not is_free:
            raise InvalidRequest("text.format and grounding cannot be combined; send one of them", param="grounding")
        return Grammar("grounding")
    if form is None or is_free:
        return None
    if form.type == "json_object":
        return Grammar("json_object")
    if form.schema_ is None:
        raise InvalidRequest("text.format.schema is missing", param="text.format.schema")
    return Grammar("json_schema", schema_text("text.format.schema", form.schema_))
