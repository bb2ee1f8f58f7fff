"""Bodies of the Batches API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from vl2.server.openai.schema import Body, Metadata, Text


class ExpiresAfter(Body):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class FileUpload(Body):
    """The form of an upload; `expires_after[anchor]` is how a form spells what is within."""

    file: Any = Field(description="with its name")
    purpose: Literal["batch", "user_data", "vision"]
    expires_after: ExpiresAfter | None = None


class BatchRequest(Body):
    model_config = ConfigDict(strict=True, extra="allow")

    input_file_id: Text
    endpoint: Literal["/v1/chat/completions", "/v1/responses", "/v1/messages"]
    completion_window: Literal["24h"]
    metadata: Metadata | None = Field(None, description="kept with the batch")
    output_expires_after: ExpiresAfter | None = None
