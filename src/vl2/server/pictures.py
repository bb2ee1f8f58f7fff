"""POST /v1/pictures: a picture as the model sees it, for whoever wants to show it.

A browser reads no TIFF and no PDF, shows 12 bits of grey as black, and may not fetch from other hosts under a strict
policy. What comes back is always a picture made here, never the bytes that were fetched.
"""

from __future__ import annotations

import asyncio
import base64
import io
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from vl2.core.types import ImagePart
from vl2.server.access import record_of
from vl2.server.auth import key_of
from vl2.server.chat import ChatService
from vl2.server.intake import JSONRoute
from vl2.server.openai.schema import PicturesRequest
from vl2.server.streaming import while_connected
from vl2.server.turns import Reference, Turn

if TYPE_CHECKING:
    from PIL import Image


MAX_SIDE = 2400
"""Pixels; the page sends none larger either."""


def picture_routes(service: ChatService) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["counting"], route_class=JSONRoute)

    async def read(body: PicturesRequest, tenant: str) -> dict[str, Any]:
        service.check_ready()
        reference = Reference("url", url=body.url, pages=body.pages)
        (message,) = await service.reader(tenant).messages([Turn("user", (reference,))])
        found = []
        for given in message.images:
            source = given.source if isinstance(given, ImagePart) else given
            image = await service.llm.open_picture(source)
            found.append(await asyncio.to_thread(picture_json, image))
        return {"object": "list", "data": found}

    @router.post("/pictures", summary="A picture, or the pages of a PDF, as the model sees them: PNG in data URLs")
    async def pictures(body: PicturesRequest, request: Request) -> dict[str, Any]:
        record = record_of(request)
        record.set_deadline()
        reading = record.in_time(read(body, key_of(request).tenant))
        return await while_connected(request.receive, reading)

    return router


def picture_json(image: Image.Image) -> dict[str, Any]:
    """Shrunk where it is larger than anyone looks at: an answer must not be many times its request."""
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"object": "picture", "width": image.width, "height": image.height, "url": url}
