"""What a browser may be used for: names and origins that are taken, CORS, and headers that keep answers harmless.

Without this a web page could ask a server on the visitor's own machine: directly, or after its own name was made to
lead there (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vl2.core.errors import Forbidden
from vl2.server.errors import error_response

ANY = "*"
PROBES = ("/health", "/health/live", "/health/ready")  # asked by load balancers under whatever name
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
CORS_METHODS = "GET, POST, DELETE"
CORS_EXPOSED = "X-Request-Id, Request-Id, Retry-After, X-VL2-Ignored, X-VL2-Result-Cache"
CORS_MAX_AGE_S = 600


class Guard:
    def __init__(self, app: ASGIApp, hosts: Sequence[str], origins: Sequence[str], *, needs_keys: bool) -> None:
        """With keys, and no list of hosts, every name is taken: a page of another origin has no key."""
        self.app = app
        own = {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}
        self.hosts = {ANY} if needs_keys and not hosts else own | {host.lower() for host in hosts}
        self.origins = {origin.lower().rstrip("/") for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        is_foreign = origin is not None and not is_same_origin(origin, headers.get("host", ""))
        is_shared = is_foreign and self._is_allowed_origin(origin or "")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                add_headers(MutableHeaders(scope=message), origin if is_shared else None)
            await send(message)

        refused = self._refusal(scope, headers.get("host", ""), is_foreign and not is_shared)
        if refused is not None:
            await error_response(refused)(scope, receive, send_with_headers)
        elif is_shared and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await preflight(headers)(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, host: str, is_refused_origin: bool) -> Forbidden | None:
        if scope["path"] in PROBES:
            return None
        if not self._is_allowed_host(host):
            return Forbidden(f"the server does not answer to the name {host[:100]!r}; --allowed-host adds names")
        if is_refused_origin:
            return Forbidden("web pages of other origins may not use this server; --allowed-origin adds origins")
        return None

    def _is_allowed_host(self, host: str) -> bool:
        """An address cannot be made to lead elsewhere, so every address is taken."""
        if ANY in self.hosts:
            return True
        name = host_name(host)
        return name in self.hosts or is_address(name)

    def _is_allowed_origin(self, origin: str) -> bool:
        return ANY in self.origins or origin.lower() in self.origins


def host_name(host: str) -> str:
    """`[::1]:80` → `::1`; "" for what is no host."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_same_origin(origin: str, host: str) -> bool:
    """Whether the page is our own. The scheme is left out: a proxy in front may add https."""
    try:
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower() != ""
    except ValueError:
        return False


def preflight(headers: Headers) -> Response:
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": CORS_METHODS,
            "Access-Control-Allow-Headers": headers.get("access-control-request-headers", ""),
            "Access-Control-Max-Age": str(CORS_MAX_AGE_S),
        },
    )


def add_headers(headers: MutableHeaders, origin: str | None) -> None:
    """Those that the answer does not have; `origin`: of a page that may read it."""
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    if origin is not None:
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = CORS_EXPOSED
        headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        headers.add_vary_header("Origin")
