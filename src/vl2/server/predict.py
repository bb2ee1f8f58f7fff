"""POST /predict: one picture, one question, one answer."""

from __future__ import annotations

import asyncio
import uuid

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from vl2.core.errors import InvalidRequest, VL2Error
from vl2.core.types import ImagePart, Message, SamplingParams
from vl2.server.access import record_of
from vl2.server.auth import key_of
from vl2.server.chat import ChatService, Question
from vl2.server.fetch import PictureFetcher, decode_base64
from vl2.server.intake import JSONRoute
from vl2.server.openai.schema import PredictRequest
from vl2.server.streaming import while_connected


def predict_routes(service: ChatService, fetcher: PictureFetcher) -> APIRouter:
    router = APIRouter(tags=["predict"], route_class=JSONRoute)

    @router.post("/predict", summary="Answer a question about a picture")
    async def predict(body: PredictRequest, request: Request) -> JSONResponse:
        text = await while_connected(request.receive, answer(service, fetcher, body, request))
        return JSONResponse({"response": text})

    return router


async def answer(service: ChatService, fetcher: PictureFetcher, body: PredictRequest, request: Request) -> str:
    record = record_of(request)
    params = SamplingParams(max_tokens=body.max_tokens)
    service.check_ready()
    record.set_deadline()
    message = Message.from_parts("user", [ImagePart(await record.in_time(read_picture(fetcher, body))), body.prompt])
    record.answer_id = f"predict-{uuid.uuid4().hex}"
    options = service.options_of(Question([], params), key_of(request), record.left_s())
    running = await service.ask([message], params, record, options)
    return (await running.fold()).text


async def read_picture(fetcher: PictureFetcher, body: PredictRequest) -> bytes:
    if (body.image is None) == (body.image_path is None):
        raise InvalidRequest("give either image or image_path", param="image")
    try:
        if body.image_path is not None:
            return await asyncio.to_thread(fetcher.read_file, body.image_path)
        assert body.image is not None
        is_url = body.image[:8].lower().startswith(("data:", "http:", "https:", "file:"))
        return await fetcher(body.image) if is_url else decode_base64(body.image)
    except VL2Error as error:
        error.param = error.param or ("image_path" if body.image is None else "image")
        raise
