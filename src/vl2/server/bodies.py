"""Route → model of its body: what docs/reference/api.md is generated from."""

from __future__ import annotations

from typing import Any

from vl2.server.anthropic.schema import CountRequest, MessagesRequest
from vl2.server.batch.schema import BatchRequest
from vl2.server.openai.schema import ChatRequest, PicturesRequest, PredictRequest, TokenizeRequest
from vl2.server.responses.schema import InputRequest, ResponseRequest

BODIES: dict[str, Any] = {
    "POST /v1/chat/completions, /v1/estimate": ChatRequest,
    "POST /v1/responses": ResponseRequest,
    "POST /v1/responses/input_tokens": InputRequest,
    "POST /v1/messages": MessagesRequest,
    "POST /v1/messages/count_tokens": CountRequest,
    "POST /v1/batches": BatchRequest,
    "POST /v1/tokenize": TokenizeRequest,
    "POST /v1/pictures": PicturesRequest,
    "POST /predict": PredictRequest,
}
