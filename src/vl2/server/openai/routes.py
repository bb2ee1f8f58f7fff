"""POST /v1/chat/completions and GET /v1/models."""

from __future__ import annotations

import time
import uuid
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from vl2.core.errors import InvalidRequest
from vl2.server.access import RequestRecord, record_of
from vl2.server.answer import Answer
from vl2.server.auth import key_of
from vl2.server.chat import ChatService
from vl2.server.events import STREAMED, event_stream
from vl2.server.fields import note_ignored
from vl2.server.intake import JSONRoute
from vl2.server.openai.adapter import check_body, to_question
from vl2.server.openai.grammars import grammar_path
from vl2.server.openai.render import ChatRenderer
from vl2.server.openai.schema import ChatRequest
from vl2.server.openai.sse import ChatEvents
from vl2.server.streaming import while_connected
from vl2.server.tenants import Key


def openai_routes(service: ChatService) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["openai"], route_class=JSONRoute)
    started = int(time.time())

    @router.post("/chat/completions", summary="Answer a conversation", response_model=None, responses=STREAMED)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        record = record_of(request)
        renderer = ChatRenderer(
            answer_id=f"chatcmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=service.model_name,
            fingerprint=service.llm.info.fingerprint if service.llm.is_ready else None,
            has_logprobs=bool(body.logprobs),
            has_token_ids=bool(body.return_token_ids),
            has_usage_chunk=bool(body.stream_options and body.stream_options.include_usage),
        )
        answer = await while_connected(request.receive, begin(service, body, record, key_of(request), renderer))
        if body.stream:
            return event_stream(answer, ChatEvents(renderer), record)
        return JSONResponse(renderer.completion(await while_connected(request.receive, answer.fold())))

    @router.get("/models", summary="The one model that is served")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model_json(service, started)]}

    @router.get("/models/{model_id:path}", summary="Facts of a model")
    async def read_model(model_id: str) -> dict[str, Any]:
        service.check_model(model_id)
        return model_json(service, started)

    return router


async def begin(
    service: ChatService, body: ChatRequest, record: RequestRecord, key: Key, renderer: ChatRenderer
) -> Answer:
    """All that can end in an error status; returns with the first token."""
    service.check_model(body.model)
    note_ignored(record.headers, check_body(body))
    question = to_question(body)
    renderer.has_tools = question.tools is not None
    record.answer_id = renderer.answer_id
    try:
        return await service.begin(question, record, key)
    except InvalidRequest as error:
        if error.param == "grammar":
            error.param = grammar_path(body) if question.tools is None else "tools"
        raise


def model_json(service: ChatService, created: int) -> dict[str, Any]:
    model = {"id": service.model_name, "object": "model", "created": created, "owned_by": "vl2"}
    if service.llm.is_ready:
        model["max_model_len"] = service.llm.info.max_context_tokens
    return model
