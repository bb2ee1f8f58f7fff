"""POST /v1/responses, and what is kept of them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from vl2.core.errors import InvalidRequest
from vl2.server.access import RequestRecord, record_of
from vl2.server.answer import Answer
from vl2.server.auth import key_of
from vl2.server.chat import ChatService, Question
from vl2.server.events import STREAMED, event_stream
from vl2.server.fields import check_fields, note_ignored
from vl2.server.ids import NodeIds
from vl2.server.intake import JSONRoute
from vl2.server.query import After, Order, page
from vl2.server.responses.adapter import to_question
from vl2.server.responses.render import ResponseEvents, response_head, response_json
from vl2.server.responses.schema import InputRequest, ResponseRequest
from vl2.server.responses.store import KeepResponses, Stored
from vl2.server.streaming import while_connected
from vl2.server.tenants import Key
from vl2.server.tools import call_text
from vl2.server.turns import Turn

KIND = "resp"
GRAMMAR_PATH = "text.format.schema"
Limit = Annotated[int, Query(ge=1, le=100, description="entries of a page")]


def responses_routes(service: ChatService, store: KeepResponses, ids: NodeIds) -> APIRouter:
    router = APIRouter(prefix="/v1/responses", tags=["responses"], route_class=JSONRoute)

    @router.post(
        "", summary="Answer a conversation, and keep it to go on from", response_model=None, responses=STREAMED
    )
    async def create(body: ResponseRequest, request: Request) -> Response:
        asking = _Asking(service, store, ids, body, key_of(request), record_of(request))
        return await asking.answer(request)

    @router.post("/input_tokens", summary="How many tokens the input has")
    async def count(body: InputRequest, request: Request) -> dict[str, Any]:
        key = key_of(request)
        service.check_model(body.model)
        note_ignored(record_of(request).headers, check_fields(body))
        question = to_question(body, await earlier_turns(store, ids, body, key))
        prompt = await while_connected(request.receive, service.prompt(question, record_of(request), key))
        return {"object": "response.input_tokens", "input_tokens": len(prompt.token_ids)}

    async def stored(response_id: str, request: Request) -> Stored:
        ids.check(KIND, response_id)
        return await store.get(response_id, key_of(request).tenant)

    @router.get("/{response_id}", summary="A response that was kept")
    async def read(response_id: str, request: Request) -> dict[str, Any]:
        return (await stored(response_id, request)).response

    @router.delete("/{response_id}", summary="Forget a response")
    async def delete(response_id: str, request: Request) -> dict[str, Any]:
        ids.check(KIND, response_id)
        await store.delete(response_id, key_of(request).tenant)
        return {"id": response_id, "object": "response.deleted", "deleted": True}

    @router.post("/{response_id}/cancel", summary="Only answers in the background could be cancelled")
    async def cancel(response_id: str, request: Request) -> None:
        await stored(response_id, request)
        raise InvalidRequest("only background responses can be cancelled, and this server has none")

    @router.get("/{response_id}/input_items", summary="What a response answered")
    async def input_items(
        response_id: str, request: Request, limit: Limit = 20, order: Order = "desc", after: After = None
    ) -> dict[str, Any]:
        items = (await stored(response_id, request)).input_items
        return page(items if order == "asc" else items[::-1], limit, after)

    return router


async def earlier_turns(store: KeepResponses, ids: NodeIds, body: InputRequest, key: Key) -> list[Turn]:
    """Raises: NotFound."""
    name = "previous_response_id"
    if body.previous_response_id is None:
        return []
    ids.check(KIND, body.previous_response_id, name)
    return (await store.get(body.previous_response_id, key.tenant, name)).turns


class _Asking:
    """One request on its way through."""

    def __init__(
        self,
        service: ChatService,
        store: KeepResponses,
        ids: NodeIds,
        body: ResponseRequest,
        key: Key,
        record: RequestRecord,
    ) -> None:
        self.service, self.store, self.ids = service, store, ids
        self.body, self.key, self.record = body, key, record

    async def answer(self, request: Request) -> Response:
        body = self.body
        answer, question, response_id = await while_connected(request.receive, self._begin())
        has_tools = question.tools is not None
        head = response_head(body, response_id, self.service.model_name, has_tools)
        if body.stream:
            whole: list[dict[str, Any]] = []

            async def keep() -> None:
                while whole:
                    await self._keep(whole.pop(), question)

            writer = ResponseEvents(head, has_tools, on_finish=whole.append)
            return event_stream(answer, writer, self.record, before_write=keep)
        completion = await while_connected(request.receive, answer.fold())
        response = response_json(head, completion, has_tools)
        await self._keep(response, question)
        return JSONResponse(response)

    async def _begin(self) -> tuple[Answer, Question, str]:
        body = self.body
        self.service.check_model(body.model)
        note_ignored(self.record.headers, check_fields(body))
        question = to_question(body, await earlier_turns(self.store, self.ids, body, self.key))
        response_id = self.ids.new(KIND)
        self.record.answer_id = response_id
        try:
            return await self.service.begin(question, self.record, self.key), question, response_id
        except InvalidRequest as error:
            if error.param == "grammar":
                error.param = "grounding" if body.grounding else "tools" if question.tools else GRAMMAR_PATH
            raise

    async def _keep(self, response: dict[str, Any], question: Question) -> None:
        if self.body.store is False:
            return
        turns = question.turns[1:] if self.body.instructions else question.turns
        said = [Turn("assistant", (_text_of(item),)) for item in response["output"]]
        await self.store.put(Stored(self.key.tenant, response, [*turns, *said], _items(self.body, self.ids)))


def _text_of(item: dict[str, Any]) -> str:
    if item["type"] == "function_call":
        return call_text(item["name"], item["arguments"])
    return "".join(part["text"] for part in item["content"])


def _items(body: ResponseRequest, ids: NodeIds) -> list[dict[str, Any]]:
    if isinstance(body.input, str):
        content = [{"type": "input_text", "text": body.input}]
        return [{"id": ids.new("msg"), "type": "message", "role": "user", "content": content}]
    return [{"id": ids.new("item")} | item.model_dump(exclude_none=True) for item in body.input]
