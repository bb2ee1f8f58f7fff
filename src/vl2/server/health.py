"""Probes: is the process alive, and may it be sent work?"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from vl2.core.errors import EngineError, NotReady
from vl2.core.interface import ChatModel
from vl2.server.access import note_error
from vl2.server.drain import Drain


def health_routes(llm: ChatModel, drain: Drain) -> APIRouter:
    router = APIRouter(prefix="/health", tags=["operation"])

    @router.get("/live", summary="200 as long as the process is of use; 503 when its engine could not be started again")
    async def live(request: Request) -> JSONResponse:
        if llm.is_failed:
            note_error(request, EngineError.code)
            return JSONResponse({"status": "failed"}, 503)
        return JSONResponse({"status": "alive"})

    @router.get("", summary="The same as /health/ready")
    @router.get(
        "/ready", summary="200 when at least one engine takes requests and the server is not stopping, else 503"
    )
    async def ready(request: Request) -> JSONResponse:
        if llm.is_ready and not drain.is_draining:
            return JSONResponse({"status": "ready"})
        note_error(request, NotReady.code)
        return JSONResponse({"status": "not ready"}, 503, {"Retry-After": "1"})

    return router
