"""GET / and GET /status: the pages, and their files below /web/. They are part of the package, and need no key."""

from __future__ import annotations

import functools
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked for again each time, and sent again when it has changed
}


class Asset:
    def __init__(self, name: str, data: bytes) -> None:
        self.media_type = CONTENT_TYPES[name[name.rfind(".") :]]
        self.data = data
        self.headers = HEADERS | {"ETag": f'"{hashlib.blake2b(data, digest_size=12).hexdigest()}"'}

    def answer(self, request: Request) -> Response:
        if request.headers.get("if-none-match") == self.headers["ETag"]:
            return Response(status_code=304, headers=self.headers)
        return Response(self.data, media_type=self.media_type, headers=self.headers)


@functools.cache
def _assets() -> dict[str, Asset]:
    """By name; read once, for the public port and the operator's."""
    folder = files("vl2.server").joinpath("web")
    return {entry.name: Asset(entry.name, entry.read_bytes()) for entry in folder.iterdir() if entry.is_file()}


STATUS_LINK = re.compile(rb'<a id="to-status".*?</a>', re.DOTALL)


def page_routes(*, has_chat: bool = True, has_status: bool = True) -> APIRouter:
    """Without its status, because another port has that, the page does not lead to one."""
    router = APIRouter(include_in_schema=False)
    assets = _assets()
    chat = assets["index.html"]
    if not has_status:
        chat = Asset("index.html", STATUS_LINK.sub(b"", chat.data))

    @router.get("/web/{name}")
    async def asset(name: str, request: Request) -> Response:
        if name not in assets:
            raise HTTPException(404)
        return assets[name].answer(request)

    if has_chat:

        @router.get("/")
        async def page(request: Request) -> Response:
            return chat.answer(request)

    if has_status:

        @router.get("/status")
        async def status(request: Request) -> Response:
            return assets["status.html"].answer(request)

    return router
