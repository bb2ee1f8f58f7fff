"""Route → model of its body, and its query parameters: what docs/reference/api.md is generated from."""

from __future__ import annotations

from typing import Any, cast

from vl2.server.anthropic.schema import CountRequest, MessagesRequest
from vl2.server.batch.routes import batch_routes
from vl2.server.batch.schema import BatchRequest, FileUpload
from vl2.server.fields import Row, table
from vl2.server.openai.schema import ChatRequest, PicturesRequest, PredictRequest, TokenizeRequest
from vl2.server.query import query_table
from vl2.server.responses.routes import responses_routes
from vl2.server.responses.schema import InputRequest, ResponseRequest

BODIES: dict[str, Any] = {
    "POST /v1/chat/completions, /v1/estimate": ChatRequest,
    "POST /v1/responses": ResponseRequest,
    "POST /v1/responses/input_tokens": InputRequest,
    "POST /v1/messages": MessagesRequest,
    "POST /v1/messages/count_tokens": CountRequest,
    "POST /v1/files": FileUpload,
    "POST /v1/batches": BatchRequest,
    "POST /v1/tokenize": TokenizeRequest,
    "POST /v1/pictures": PicturesRequest,
    "POST /predict": PredictRequest,
}


def body_tables() -> dict[str, list[Row]]:
    return {route: table(model) for route, model in BODIES.items()}


def query_tables() -> dict[str, list[Row]]:
    """The routes are only looked at, so they need nothing to work with."""
    nothing = cast(Any, None)
    routers = (responses_routes(nothing, nothing, nothing), batch_routes(None))
    return query_table(route for router in routers for route in router.routes)
