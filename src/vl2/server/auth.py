"""Keys: who may use the API. One check for every route, so that no new route can forget it."""

from __future__ import annotations

import hmac
from contextlib import AsyncExitStack

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vl2.core.errors import RateLimited, Unauthorized
from vl2.core.secret import Secret
from vl2.server.errors import error_response
from vl2.server.quotas import HoldQuota
from vl2.server.tenants import ANYONE, Key, KeyRing, digest_of

PUBLIC_PATHS = ("/", "/status", "/health", "/health/live", "/health/ready")
PUBLIC_PREFIX = "/web/"  # the page's own files
INSIDE = "vl2.key"
"""In the scope of the server's own requests, a batch's lines: whose they are. Nothing that is sent can put it there."""
OPERATOR_PATHS = ("/metrics", "/status/data")
"""Numbers about all tenants: for the scrape key, and for a key only where all keys are one tenant's."""


class RequireKey:
    """Lets a request through if it is public or brings a key; everything, where no key is set.

    The key comes as `Authorization: Bearer KEY`, or as Anthropic's clients send it, `x-api-key: KEY`.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, scrape_key: Secret | None, quotas: HoldQuota) -> None:
        self.app = app
        self.keys = keys
        self.quotas = quotas
        self.scrape_digest = digest_of(scrape_key.reveal()) if scrape_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        if is_public(scope) or self._is_scrape(scope) or INSIDE in scope:
            state["key"] = scope.get(INSIDE, ANYONE)
            await self.app(scope, receive, send)
            return
        key = self._key_of(scope)
        if key is None:
            what = "scrape key" if self._is_for_scrape_key(scope) else "API key"
            error = Unauthorized(f"no valid {what} was sent; send it as the header Authorization: Bearer KEY")
            await error_response(error)(scope, receive, send)
            return
        state["key"] = key
        try:
            async with AsyncExitStack() as held:
                await held.enter_async_context(self.quotas.hold(key))

                async def send_or_end(message: Message) -> None:
                    if message["type"] == "http.response.body" and not message.get("more_body", False):
                        await held.aclose()  # whoever has read the end may ask again at once
                    await send(message)

                await self.app(scope, receive, send_or_end)
        except RateLimited as error:  # the only one that is raised here: the app answers its own errors
            await error_response(error)(scope, receive, send)

    def _is_scrape(self, scope: Scope) -> bool:
        """Whether the operator's own path is asked for with the operator's own key."""
        if scope["path"] not in OPERATOR_PATHS or self.scrape_digest is None:
            return False
        return hmac.compare_digest(digest_of(sent_key(Headers(scope=scope))), self.scrape_digest)

    def _is_for_scrape_key(self, scope: Scope) -> bool:
        """Whether no tenant's key opens it."""
        is_operators = scope["path"] in OPERATOR_PATHS
        return is_operators and (self.scrape_digest is not None or self.keys.has_many_tenants)

    def _key_of(self, scope: Scope) -> Key | None:
        if self._is_for_scrape_key(scope):
            return None
        return ANYONE if self.keys.is_open else self.keys.find(sent_key(Headers(scope=scope)))


def sent_key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    return headers.get("x-api-key", "").strip()


def is_public(scope: Scope) -> bool:
    path = scope["path"]
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIX) or scope["method"] == "OPTIONS"


def key_of(request: Request) -> Key:
    key = request.state.key
    assert isinstance(key, Key)
    return key
