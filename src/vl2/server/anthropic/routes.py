"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from vl2.core.errors import InvalidRequest
from vl2.server.access import record_of
from vl2.server.answer import Answer
from vl2.server.anthropic.adapter import to_question
from vl2.server.anthropic.render import MessageEvents, message_json
from vl2.server.anthropic.schema import CountRequest, MessagesRequest
from vl2.server.auth import key_of
from vl2.server.chat import ChatService, Question
from vl2.server.events import STREAMED, event_stream
from vl2.server.fields import check_fields, note_ignored
from vl2.server.ids import NodeIds
from vl2.server.intake import JSONRoute
from vl2.server.streaming import while_connected


def anthropic_routes(service: ChatService, ids: NodeIds) -> APIRouter:
    router = APIRouter(prefix="/v1/messages", tags=["anthropic"], route_class=JSONRoute)

    def question_of(body: CountRequest, request: Request) -> Question:
        service.check_model(body.model)
        note_ignored(record_of(request).headers, check_fields(body))
        return to_question(body)

    async def begin(question: Question, request: Request) -> Answer:
        try:
            return await service.begin(question, record_of(request), key_of(request))
        except InvalidRequest as error:
            if error.param == "grammar":
                error.param = "tools" if question.tools else "grounding"
            raise

    @router.post(
        "", summary="Answer a conversation, as Anthropic's clients ask", response_model=None, responses=STREAMED
    )
    async def create(body: MessagesRequest, request: Request) -> Response:
        question = question_of(body, request)
        message_id = record_of(request).answer_id = ids.new("msg")
        answer = await while_connected(request.receive, begin(question, request))
        has_tools = question.tools is not None
        if body.stream:
            writer = MessageEvents(message_id, service.model_name, has_tools)
            return event_stream(answer, writer, record_of(request))
        completion = await while_connected(request.receive, answer.fold())
        return JSONResponse(message_json(message_id, service.model_name, completion, has_tools))

    @router.post("/count_tokens", summary="How many tokens a conversation has")
    async def count(body: CountRequest, request: Request) -> dict[str, Any]:
        question = question_of(body, request)
        counting = service.prompt(question, record_of(request), key_of(request))
        prompt = await while_connected(request.receive, counting)
        return {"input_tokens": len(prompt.token_ids)}

    return router
