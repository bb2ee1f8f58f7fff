"""Keys: who may use the API. One check for every route, so that no new route can forget it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from vl2.core.errors import Unauthorized
from vl2.server.errors import error_response

PUBLIC_PATHS = ("/", "/health", "/health/live", "/health/ready")
PUBLIC_PREFIX = "/web/"  # the page's own files


class RequireKey:
    """Lets a request through if it is public or brings `Authorization: Bearer KEY`; everything, where no key is set."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self.app = app
        self.digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.digests or is_public(scope) or self._has_key(Headers(scope=scope)):
            await self.app(scope, receive, send)
        else:
            error = Unauthorized("no valid API key was sent; send it as the header Authorization: Bearer KEY")
            await error_response(error)(scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        digest = _digest(key.strip())
        # Every key is compared, in constant time: the time taken tells nothing about any of them.
        matches = [hmac.compare_digest(digest, known) for known in self.digests]
        return scheme.lower() == "bearer" and any(matches)


def is_public(scope: Scope) -> bool:
    path = scope["path"]
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIX) or scope["method"] == "OPTIONS"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
