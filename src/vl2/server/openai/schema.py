"""Bodies of chat completions and of /predict, as clients send them, and what other dialects share with them.

pydantic is used in files of this name only. `vl2.server.fields` tells what `Hint` and `Refused` mean.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from vl2.server.fields import Hint, Refused


def _check_unicode(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"has half of a surrogate pair at character {error.start}, which is no text") from None
    return text


Text = Annotated[str, AfterValidator(_check_unicode)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=1, lt=2**31)]


def _check_pairs(pairs: dict[str, str]) -> dict[str, str]:
    """OpenAI's own limits: what is kept with an object must not be an object store."""
    if len(pairs) > 16 or any(len(key) > 64 or len(value) > 512 for key, value in pairs.items()):
        raise ValueError("takes at most 16 pairs, with names of at most 64 characters and texts of at most 512")
    return pairs


Metadata = Annotated[dict[str, Text], AfterValidator(_check_pairs)]


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


# ---- POST /v1/chat/completions --------------------------------------------------------------------------------------


CacheMark = Annotated[Any, Hint("prefixes are kept without being asked")]


class TextPart(Body):
    type: Literal["text"]
    text: Text
    prompt_cache_breakpoint: CacheMark = None


class ImageURL(Body):
    url: Text
    detail: Literal["auto", "low", "high", "original"] | None = Field(None, description="low: one tile")


def _as_object(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class ImagePart(Body):
    type: Literal["image_url"]
    image_url: Annotated[ImageURL, BeforeValidator(_as_object)]  # a plain string is taken as its URL
    prompt_cache_breakpoint: CacheMark = None


class File(Body):
    file_data: Text | None = Field(None, description="a data URL, or plain base64")
    file_id: Text | None = Field(None, description="of an uploaded file")
    file_url: Text | None = Field(None, description="ours: as image_url.url")
    filename: Annotated[Text | None, Hint()] = None
    pages: Text | None = Field(None, description="ours: pages of a PDF, as 1-3,5; default: all")


class FilePart(Body):
    """A picture, or a PDF whose pages become pictures."""

    type: Literal["file"]
    file: File
    prompt_cache_breakpoint: CacheMark = None


def kind_of(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


def _part_kind(value: Any) -> str | None:
    kind = kind_of(value)
    return f"<{kind}>" if kind in ("text", "image_url", "file") else None


def _content_kind(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<parts>" if isinstance(value, list) else None


def _stop_kind(value: Any) -> str | None:
    return "<string>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None


def choice_of(kind: Any, rule: str) -> Discriminator:
    return Discriminator(kind, custom_error_type="wrong_kind", custom_error_message=rule)


def _schema_kind(value: Any) -> str | None:
    return "<string>" if isinstance(value, str) else "<object>" if isinstance(value, dict) else None


Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image_url>")] | Annotated[FilePart, Tag("<file>")],
    choice_of(_part_kind, "must be an object whose type is 'text', 'image_url' or 'file'"),
]
Content = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[Part], Tag("<parts>")],
    choice_of(_content_kind, "must be a string or a list of parts"),
]
Stop = Annotated[
    Annotated[Text, Tag("<string>")] | Annotated[list[Text], Tag("<list>")],
    choice_of(_stop_kind, "must be a string or a list of strings"),
]

GuidedJSON = Annotated[
    Annotated[Text, Tag("<string>")] | Annotated[dict[str, Any], Tag("<object>")],
    choice_of(_schema_kind, "must be a JSON schema, as an object or a string"),
]


class FunctionCall(Body):
    name: Text
    arguments: Text
    parsed_arguments: Annotated[Any, Hint("the client's own reading of `arguments`")] = None


class ToolCall(Body):
    id: Text
    type: Literal["function"]
    function: FunctionCall
    index: Annotated[Any, Hint("of a stream's piece")] = None


class ChatMessage(Body):
    model_config = ConfigDict(strict=True, extra="allow")  # an answer of ours may be sent back as it came

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    tool_calls: list[ToolCall] | None = Field(None, description="of an assistant's message")
    tool_call_id: Text | None = Field(None, description="of a tool's message")
    name: Annotated[Text | None, Hint("the models' format has no place for it")] = None
    annotations: Annotated[Any, Hint()] = None
    grounding: Annotated[Any, Hint()] = None
    audio: Annotated[Any, Refused()] = None
    function_call: Annotated[Any, Refused()] = None
    refusal: Annotated[Any, Refused(harmless=("",))] = None

    @model_validator(mode="before")
    @classmethod
    def _silent_assistant(cls, given: Any) -> Any:
        """OpenAI's clients send an assistant that said nothing with `content: null`, or without content."""
        if isinstance(given, dict) and given.get("role") == "assistant":
            says_nothing = given.get("content", "") is None or ("content" not in given and given.get("tool_calls"))
            return given | {"content": ""} if says_nothing else given
        return given


class FunctionDefinition(Body):
    name: Annotated[Text, Field(min_length=1, max_length=64)]
    description: Text | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema")
    strict: Annotated[bool | None, Hint("it is always strict")] = None


class Tool(Body):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Body):
    name: Text


class ToolChoice(Body):
    type: Literal["function"]
    function: NamedFunction


def tool_choice_kind(value: Any) -> str | None:
    return "<word>" if isinstance(value, str) else "<object>" if isinstance(value, (dict, Body)) else None


AnyToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")] | Annotated[ToolChoice, Tag("<object>")],
    choice_of(tool_choice_kind, "must be 'none', 'auto', 'required', or name a function"),
]


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, Hint("answers are not padded")] = None


class JSONSchemaFormat(Body):
    name: Annotated[Text, Hint()]
    description: Annotated[Text | None, Hint()] = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: Annotated[bool | None, Hint("it is always strict")] = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchemaFormat | None = None


class StructuredOutputs(Body):
    json_: Annotated[GuidedJSON | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: Text | None = None
    choice: Annotated[list[Text], Field(min_length=1)] | None = None


class ChatRequest(Body):
    model_config = ConfigDict(strict=True, extra="allow")  # `check_fields` says what is wrong with the others

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: Text | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: Stop | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    # as in vLLM
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None  # -1 and 0: off
    min_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[TokenId] | None = None
    return_token_ids: bool | None = None
    priority: int | None = None  # lower is sooner
    deadline_s: float | None = None  # the longest wait in the queue; ours, not vLLM's
    cache_salt: Text | None = None  # requests with different salts share no prefix
    guided_json: GuidedJSON | None = None
    guided_choice: Annotated[list[Text], Field(min_length=1)] | None = None
    guided_regex: Text | None = None
    structured_outputs: StructuredOutputs | None = None  # vLLM's newer spelling of the three
    continue_final_message: bool | None = None  # these two only if they say what happens anyway
    add_generation_prompt: bool | None = None
    # our own
    grounding: bool | None = Field(None, description="boxes can only be well-formed")
    tools: list[Tool] | None = None
    tool_choice: AnyToolChoice | None = None
    # taken without effect
    metadata: Annotated[Any, Hint()] = None
    parallel_tool_calls: Annotated[bool | None, Hint("an answer holds at most one call")] = None
    prediction: Annotated[Any, Hint()] = None
    prompt_cache_key: Annotated[Any, Hint()] = None
    prompt_cache_options: Annotated[Any, Hint()] = None
    prompt_cache_retention: Annotated[Any, Hint()] = None
    safety_identifier: Annotated[Any, Hint()] = None
    service_tier: Annotated[Any, Hint()] = None
    spaces_between_special_tokens: Annotated[Any, Hint()] = None
    store: Annotated[Any, Hint()] = None
    user: Annotated[Any, Hint()] = None
    # refused
    audio: Annotated[Any, Refused()] = None
    function_call: Annotated[Any, Refused(("none", "auto"), "is not supported by this server; use tool_choice")] = None
    functions: Annotated[Any, Refused(([],), "is not supported by this server; use tools")] = None
    include_stop_str_in_output: Annotated[
        Any, Refused((False,), "is not supported by this server: an answer ends before its stop string")
    ] = None
    min_tokens: Annotated[Any, Refused((0,))] = None
    modalities: Annotated[Any, Refused((["text"],))] = None
    moderation: Annotated[Any, Refused()] = None
    reasoning_effort: Annotated[Any, Refused(("none",))] = None
    skip_special_tokens: Annotated[
        Any, Refused((False,), "must be false: this server keeps tags such as <|ref|> in the answer")
    ] = None
    verbosity: Annotated[Any, Refused(("medium",))] = None
    web_search_options: Annotated[Any, Refused()] = None


# ---- POST /v1/tokenize ----------------------------------------------------------------------------------------------


class TokenizeRequest(Body):
    model_config = ConfigDict(strict=True, extra="allow")

    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    prompt: Text | None = Field(None, description="the same as one user message")
    model: Text | None = None


# ---- POST /v1/pictures ----------------------------------------------------------------------------------------------


class PicturesRequest(Body):
    url: Text = Field(description="data:, http(s): or file: URL of a picture or a PDF, as image_url.url")
    pages: Text | None = Field(None, description="of a PDF, as 1-3,5; default: all")


# ---- POST /predict --------------------------------------------------------------------------------------------------


class PredictRequest(Body):
    prompt: Text
    image: Text | None = Field(None, description="data URL, plain base64 or http(s) URL")
    image_path: Text | None = Field(None, description="path of a file below the server's picture folder")
    max_tokens: Count | None = None
