"""Bodies of the Responses API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Tag, model_validator

from vl2.server.fields import Hint, Refused
from vl2.server.openai.schema import (
    Body,
    CacheMark,
    Count,
    Metadata,
    StreamOptions,
    Text,
    choice_of,
    kind_of,
    tool_choice_kind,
)


class InputText(Body):
    type: Literal["input_text"]
    text: Text
    prompt_cache_breakpoint: CacheMark = None


class OutputText(Body):
    model_config = ConfigDict(strict=True, extra="ignore")  # an answer of ours may be sent back as it came

    type: Literal["output_text"]
    text: Text


class InputImage(Body):
    type: Literal["input_image"]
    image_url: Text | None = None
    file_id: Text | None = None
    detail: Literal["auto", "low", "high", "original"] | None = Field(None, description="low: one tile")
    prompt_cache_breakpoint: CacheMark = None


class InputFile(Body):
    type: Literal["input_file"]
    file_data: Text | None = Field(None, description="a data URL, or plain base64")
    file_id: Text | None = None
    file_url: Text | None = None
    detail: Literal["auto", "low", "high"] | None = Field(None, description="low: one tile for each page")
    filename: Annotated[Text | None, Hint()] = None
    prompt_cache_breakpoint: CacheMark = None
    pages: Text | None = Field(None, description="ours: pages of a PDF, as 1-3,5; default: all")


def _kind_among(*kinds: str) -> Any:
    return lambda value: f"<{kind}>" if (kind := kind_of(value)) in kinds else None


def _content_kind(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<parts>" if isinstance(value, list) else None


Part = Annotated[
    Annotated[InputText, Tag("<input_text>")]
    | Annotated[OutputText, Tag("<output_text>")]
    | Annotated[InputImage, Tag("<input_image>")]
    | Annotated[InputFile, Tag("<input_file>")],
    choice_of(
        _kind_among("input_text", "output_text", "input_image", "input_file"),
        "must be an object whose type is 'input_text', 'input_image', 'input_file' or 'output_text'",
    ),
]
Content = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[Part], Tag("<parts>")],
    choice_of(_content_kind, "must be a string or a list of parts"),
]


class MessageItem(Body):
    type: Literal["message"]
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: Annotated[Text | None, Hint()] = None
    status: Annotated[Text | None, Hint()] = None
    phase: Annotated[Any, Hint()] = None


class CallItem(Body):
    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: Text
    id: Annotated[Text | None, Hint()] = None
    status: Annotated[Text | None, Hint()] = None


class CallOutputItem(Body):
    type: Literal["function_call_output"]
    call_id: Text
    output: Content
    id: Annotated[Text | None, Hint()] = None
    status: Annotated[Text | None, Hint()] = None


def _item_kind(value: Any) -> str | None:
    kind = kind_of(value)
    return f"<{kind}>" if kind in ("message", "function_call", "function_call_output") else None


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<function_call>")]
    | Annotated[CallOutputItem, Tag("<function_call_output>")],
    choice_of(_item_kind, "must be a message, a function_call or a function_call_output"),
]
Input = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[Item], Tag("<items>")],
    choice_of(
        lambda value: "<text>" if isinstance(value, str) else "<items>" if isinstance(value, list) else None,
        "must be a string or a list of items",
    ),
]


class Format(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[Text | None, Hint()] = None
    description: Annotated[Text | None, Hint()] = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: Annotated[bool | None, Hint("it is always strict")] = None


class TextConfig(Body):
    format: Format | None = None
    verbosity: Annotated[Any, Refused(("medium",))] = None


class FunctionTool(Body):
    type: Literal["function"]
    name: Annotated[Text, Field(min_length=1, max_length=64)]
    description: Text | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema")
    strict: Annotated[bool | None, Hint("it is always strict")] = None


class NamedTool(Body):
    type: Literal["function"]
    name: Text


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")] | Annotated[NamedTool, Tag("<object>")],
    choice_of(tool_choice_kind, "must be 'none', 'auto', 'required', or name a function"),
]


class InputRequest(Body):
    """What a count of tokens and an answer have in common."""

    model_config = ConfigDict(strict=True, extra="allow")

    input: Input
    model: Text | None = None
    instructions: Text | None = None
    previous_response_id: Text | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    text: TextConfig | None = None
    conversation: Annotated[Any, Refused()] = None
    parallel_tool_calls: Annotated[bool | None, Hint("an answer holds at most one call")] = None
    reasoning: Annotated[Any, Refused(({}, {"effort": "none"}, {"effort": None, "summary": None}))] = None
    truncation: Annotated[Any, Refused(("disabled",))] = None

    @model_validator(mode="before")
    @classmethod
    def _name_messages(cls, given: Any) -> Any:
        """An item without type but with a role is a message."""
        items = given.get("input") if isinstance(given, dict) else None
        if not isinstance(items, list):
            return given
        named = [
            {"type": "message"} | item
            if isinstance(item, dict) and "role" in item and item.get("type") is None
            else item
            for item in items
        ]
        return given | {"input": named}


class ResponseRequest(InputRequest):
    stream: bool | None = None
    store: bool | None = Field(None, description="false: the response cannot be read or continued later")
    max_output_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    metadata: Metadata | None = Field(None, description="kept with the response")
    stream_options: StreamOptions | None = None
    seed: int | None = Field(None, description="ours, as in chat completions")
    grounding: bool | None = Field(None, description="ours: boxes can only be well-formed")
    priority: int | None = None
    cache_salt: Text | None = None
    prompt_cache_key: Annotated[Any, Hint()] = None
    prompt_cache_options: Annotated[Any, Hint()] = None
    prompt_cache_retention: Annotated[Any, Hint()] = None
    safety_identifier: Annotated[Any, Hint()] = None
    service_tier: Annotated[Any, Hint()] = None
    user: Annotated[Any, Hint()] = None
    access_programs: Annotated[Any, Refused()] = None
    background: Annotated[Any, Refused((False,))] = None
    background_options: Annotated[Any, Refused()] = None
    context_management: Annotated[Any, Refused()] = None
    image: Annotated[Any, Refused()] = None
    max_tool_calls: Annotated[Any, Refused()] = None
    moderation: Annotated[Any, Refused()] = None
    prompt: Annotated[Any, Refused()] = None
