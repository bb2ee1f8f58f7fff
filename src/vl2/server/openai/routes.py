"""POST /v1/chat/completions and GET /v1/models."""

from __future__ import annotations

import time
import uuid
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from vl2.core.errors import InvalidRequest
from vl2.server.access import RequestRecord, record_of
from vl2.server.chat import Answer, ChatService
from vl2.server.openai.adapter import check_fields, picture_urls, to_messages, to_options, to_params
from vl2.server.openai.grammars import grammar_path
from vl2.server.openai.render import ChatRenderer
from vl2.server.openai.schema import ChatRequest
from vl2.server.openai.sse import chat_events, stopping_events
from vl2.server.streaming import EventStream, while_connected


def openai_routes(service: ChatService) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["openai"])
    started = int(time.time())

    @router.post("/chat/completions", summary="Answer a conversation", response_model=None)
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
        answer = await while_connected(request.receive, begin(service, body, record, renderer.answer_id))
        if body.stream:
            return EventStream(chat_events(answer, renderer, record), answer.aclose, partial(stopping_events, record))
        return JSONResponse(renderer.completion(await while_connected(request.receive, answer.fold())))

    @router.get("/models", summary="The one model that is served")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model_json(service, started)]}

    @router.get("/models/{model_id:path}", summary="Facts of a model")
    async def read_model(model_id: str) -> dict[str, Any]:
        service.check_model(model_id)
        return model_json(service, started)

    return router


async def begin(service: ChatService, body: ChatRequest, record: RequestRecord, answer_id: str) -> Answer:
    """All that can end in an error status; returns with the first token."""
    service.check_model(body.model)
    check_fields(body)
    params, options = to_params(body), to_options(body)
    service.check_ready()
    service.check_num_pictures(len(picture_urls(body.messages)))
    messages = await to_messages(body.messages, service.fetch)
    record.answer_id = answer_id
    try:
        return await service.ask(messages, params, record, options)
    except InvalidRequest as error:
        error.param = grammar_path(body) if error.param == "grammar" else error.param
        raise


def model_json(service: ChatService, created: int) -> dict[str, Any]:
    model = {"id": service.model_name, "object": "model", "created": created, "owned_by": "vl2"}
    if service.llm.is_ready:
        model["max_model_len"] = service.llm.info.max_context_tokens
    return model
