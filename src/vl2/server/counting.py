"""POST /v1/tokenize and /v1/estimate: what a request would cost, told without the model."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from vl2.core.errors import InvalidRequest
from vl2.core.types import Prompt, SamplingParams
from vl2.server.access import record_of
from vl2.server.auth import key_of
from vl2.server.chat import ChatService, Question
from vl2.server.fields import check_fields, note_ignored
from vl2.server.intake import JSONRoute
from vl2.server.openai.adapter import check_body, to_question, to_turns
from vl2.server.openai.schema import ChatRequest, TokenizeRequest
from vl2.server.streaming import while_connected
from vl2.server.turns import Turn


def counting_routes(service: ChatService) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["counting"], route_class=JSONRoute)

    async def count(question: Question, request: Request) -> Prompt:
        return await while_connected(request.receive, service.prompt(question, record_of(request), key_of(request)))

    @router.post("/tokenize", summary="The tokens that the model would see")
    async def tokenize(body: TokenizeRequest, request: Request) -> dict[str, Any]:
        service.check_model(body.model)
        note_ignored(record_of(request).headers, check_fields(body))
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest("give either messages or prompt", param="messages")
        turns = [Turn("user", (body.prompt,))] if body.prompt is not None else to_turns(body.messages or [])
        prompt = await count(Question(turns, SamplingParams()), request)
        return {"tokens": prompt.token_ids, **counts(prompt), "max_model_len": service.llm.info.max_context_tokens}

    @router.post("/estimate", summary="Tokens, whether they fit, and how long an answer may take")
    async def estimate(body: ChatRequest, request: Request) -> dict[str, Any]:
        service.check_model(body.model)
        note_ignored(record_of(request).headers, check_body(body))
        question = to_question(body)
        prompt = await count(question, request)
        return estimate_json(service, prompt, question.params.max_tokens)

    return router


def counts(prompt: Prompt) -> dict[str, Any]:
    total, of_pictures = len(prompt.token_ids), prompt.num_image_tokens
    return {"count": total, "text_tokens": total - of_pictures, "image_tokens": of_pictures}


def estimate_json(service: ChatService, prompt: Prompt, max_tokens: int | None) -> dict[str, Any]:
    context, total = service.llm.info.max_context_tokens, len(prompt.token_ids)
    room = max(0, context - total)
    wanted = room if max_tokens is None else max_tokens
    rates = service.rates
    first_s, decode_s = rates.first_token_s(total), rates.decode_s(max(0, wanted - 1))
    return {
        "object": "estimate",
        **counts(prompt),
        "pictures": [
            {"width": span.width, "height": span.height, "tiles": span.num_tiles, "tokens": span.length}
            for span in prompt.spans
        ],
        "max_model_len": context,
        "max_answer_tokens": room,
        "fits": 0 < wanted <= room,
        "expected_first_token_s": first_s,
        "expected_total_s": None if first_s is None or decode_s is None else first_s + decode_s,
        "from_recent_answers": rates.num_answers,
    }
