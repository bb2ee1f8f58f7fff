"""GET /: the page, and its files below /web/. They are part of the package, and need no key."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.exceptions import HTTPException

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_routes() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    assets = {
        entry.name: entry.read_bytes() for entry in files("vl2.server").joinpath("web").iterdir() if entry.is_file()
    }

    def serve(name: str) -> Response:
        kind = CONTENT_TYPES.get(name[name.rfind(".") :])
        if kind is None or name not in assets:
            raise HTTPException(404)
        return Response(assets[name], media_type=kind, headers=HEADERS)

    @router.get("/")
    async def page() -> Response:
        return serve("index.html")

    @router.get("/web/{name}")
    async def asset(name: str) -> Response:
        return serve(name)

    return router
