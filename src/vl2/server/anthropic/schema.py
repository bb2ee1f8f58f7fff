"""Bodies of Anthropic's Messages API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Tag

from vl2.server.fields import Hint, Refused
from vl2.server.openai.schema import Body, Count, Text, choice_of, kind_of

CacheControl = Annotated[Any, Hint()]


class TextBlock(Body):
    type: Literal["text"]
    text: Text
    cache_control: CacheControl = None
    citations: Annotated[Any, Hint()] = None


class Source(Body):
    """Of a picture or a PDF: base64, a URL, or plain text (of a document)."""

    type: Literal["base64", "url", "text", "file"]
    media_type: Annotated[Text | None, Hint("what it is, is found out from the data")] = None
    data: Text | None = None
    url: Text | None = None
    file_id: Text | None = None


class ImageBlock(Body):
    type: Literal["image"]
    source: Source
    cache_control: CacheControl = None


class DocumentBlock(Body):
    type: Literal["document"]
    source: Source
    pages: Text | None = Field(None, description="ours: pages of a PDF, as 1-3,5; default: all")
    title: Text | None = Field(None, description="told before the document")
    context: Text | None = Field(None, description="told before the document")
    cache_control: CacheControl = None
    citations: Annotated[Any, Refused(({"enabled": False},))] = None


class ToolUseBlock(Body):
    type: Literal["tool_use"]
    id: Text
    name: Text
    input: dict[str, Any]
    cache_control: CacheControl = None
    caller: Annotated[Any, Hint()] = None


def _kind(*kinds: str) -> Any:
    return lambda value: f"<{kind}>" if (kind := kind_of(value)) in kinds else None


def _text_or_list(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<blocks>" if isinstance(value, list) else None


ResultBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")] | Annotated[ImageBlock, Tag("<image>")],
    choice_of(_kind("text", "image"), "must be an object whose type is 'text' or 'image'"),
]


class ToolResultBlock(Body):
    type: Literal["tool_result"]
    tool_use_id: Text
    content: Annotated[
        Annotated[Text, Tag("<text>")] | Annotated[list[ResultBlock], Tag("<blocks>")],
        choice_of(_text_or_list, "must be a string or a list of blocks"),
    ] = ""
    is_error: bool | None = None
    cache_control: CacheControl = None


Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ImageBlock, Tag("<image>")]
    | Annotated[DocumentBlock, Tag("<document>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")],
    choice_of(
        _kind("text", "image", "document", "tool_use", "tool_result"),
        "must be an object whose type is 'text', 'image', 'document', 'tool_use' or 'tool_result'",
    ),
]


class MessageParam(Body):
    role: Literal["user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag("<text>")] | Annotated[list[Block], Tag("<blocks>")],
        choice_of(_text_or_list, "must be a string or a list of blocks"),
    ]


class Tool(Body):
    name: Annotated[Text, Field(min_length=1, max_length=64)]
    description: Text | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    strict: Annotated[bool | None, Hint("it is always strict")] = None
    cache_control: CacheControl = None


class ToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = Field(None, description="with type tool")
    disable_parallel_tool_use: Annotated[bool | None, Hint("an answer holds at most one call")] = None


class CountRequest(Body):
    model_config = ConfigDict(strict=True, extra="allow")

    messages: Annotated[list[MessageParam], Field(min_length=1)]
    model: Text | None = None
    system: (
        Annotated[
            Annotated[Text, Tag("<text>")] | Annotated[list[TextBlock], Tag("<blocks>")],
            choice_of(_text_or_list, "must be a string or a list of text blocks"),
        ]
        | None
    ) = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    cache_control: CacheControl = None
    output_config: Annotated[Any, Refused(({},))] = None
    speed: Annotated[Any, Hint()] = None
    thinking: Annotated[Any, Refused(({"type": "disabled"},))] = None
    user_profile_id: Annotated[Any, Hint()] = None
    workspace_id: Annotated[Any, Hint()] = None


class MessagesRequest(CountRequest):
    max_tokens: Count
    stream: bool | None = None
    stop_sequences: list[Text] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    seed: int | None = Field(None, description="ours, as in chat completions")
    grounding: bool | None = Field(None, description="ours: boxes can only be well-formed")
    metadata: Annotated[Any, Hint()] = None
    service_tier: Annotated[Any, Hint()] = None
    inference_geo: Annotated[Any, Hint()] = None
    container: Annotated[Any, Refused()] = None
    diagnostics: Annotated[Any, Refused()] = None
