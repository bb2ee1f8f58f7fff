"""Bodies of the Batches API."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from vl2.server.openai.schema import Body, Text


class ExpiresAfter(Body):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class BatchRequest(Body):
    model_config = ConfigDict(strict=True, extra="allow")

    input_file_id: Text
    endpoint: Literal["/v1/chat/completions", "/v1/responses", "/v1/messages"]
    completion_window: Literal["24h"]
    metadata: dict[str, Text] | None = Field(None, description="kept with the batch")
    output_expires_after: ExpiresAfter | None = None
