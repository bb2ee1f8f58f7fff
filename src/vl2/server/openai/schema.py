"""Bodies of requests, as clients send them: the only place of pydantic.

Every field of OpenAI's chat completions is in one of three classes: declared on `ChatRequest` (it works), listed in
`HINTS` (taken without effect, as it never changes an answer), or in `REFUSED` (it would change the answer and cannot
be honoured: 400, unless it has a value that changes nothing).
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

HINTS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "spaces_between_special_tokens",
        "store",
        "user",
    }
)
REFUSED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_stop_str_in_output": (False,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "moderation": (),
    "reasoning_effort": ("none",),
    "skip_special_tokens": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Field → values that change nothing (null never does)."""

REASONS = {
    "include_stop_str_in_output": "is not supported by this server: an answer ends before its stop string",
    "skip_special_tokens": "must be false: this server keeps tags such as <|ref|> in the answer",
}
"""Why a refused field is refused, where that helps."""


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


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


# ---- POST /v1/chat/completions --------------------------------------------------------------------------------------


class TextPart(_Body):
    type: Literal["text"]
    text: Text


class ImageURL(_Body):
    url: Text
    detail: Literal["auto", "low", "high"] | None = None  # a hint for now


def _as_object(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class ImagePart(_Body):
    type: Literal["image_url"]
    image_url: Annotated[ImageURL, BeforeValidator(_as_object)]  # a plain string is taken as its URL


def _part_kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in ("text", "image_url") else None


def _content_kind(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<parts>" if isinstance(value, list) else None


def _stop_kind(value: Any) -> str | None:
    return "<string>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None


def _choice_of(kind: Any, rule: str) -> Discriminator:
    return Discriminator(kind, custom_error_type="wrong_kind", custom_error_message=rule)


def _schema_kind(value: Any) -> str | None:
    return "<string>" if isinstance(value, str) else "<object>" if isinstance(value, dict) else None


Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image_url>")],
    _choice_of(_part_kind, "must be an object whose type is 'text' or 'image_url'"),
]
Content = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[Part], Tag("<parts>")],
    _choice_of(_content_kind, "must be a string or a list of parts"),
]
Stop = Annotated[
    Annotated[Text, Tag("<string>")] | Annotated[list[Text], Tag("<list>")],
    _choice_of(_stop_kind, "must be a string or a list of strings"),
]

GuidedJSON = Annotated[
    Annotated[Text, Tag("<string>")] | Annotated[dict[str, Any], Tag("<object>")],
    _choice_of(_schema_kind, "must be a JSON schema, as an object or a string"),
]


class ChatMessage(_Body):
    model_config = ConfigDict(strict=True, extra="allow")  # an answer of ours may be sent back as it came

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Text | None = None  # a hint

    @model_validator(mode="before")
    @classmethod
    def _silent_assistant(cls, given: Any) -> Any:
        """OpenAI's clients send an assistant that said nothing with `content: null`."""
        if isinstance(given, dict) and given.get("role") == "assistant" and given.get("content", "") is None:
            return given | {"content": ""}
        return given


class StreamOptions(_Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # a hint: our answers are not padded


class JSONSchemaFormat(_Body):
    name: Text  # a hint, like the next
    description: Text | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None  # a hint: it is always strict


class ResponseFormat(_Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchemaFormat | None = None


class StructuredOutputs(_Body):
    json_: Annotated[GuidedJSON | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: Text | None = None
    choice: Annotated[list[Text], Field(min_length=1)] | None = None


class ChatRequest(_Body):
    model_config = ConfigDict(strict=True, extra="allow")  # the adapter sorts what is not declared here

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
    grounding: bool | None = None


# ---- POST /predict --------------------------------------------------------------------------------------------------


class PredictRequest(_Body):
    prompt: Text
    image: Text | None = Field(None, description="data URL, plain base64 or http(s) URL")
    image_path: Text | None = Field(None, description="path of a file below the server's picture folder")
    max_tokens: Count | None = None
