"""What is known about each request: its id, what became of it, one log line, one count in the metrics."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
import uuid
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vl2.core.errors import DeadlineExceeded, InvalidRequest, VL2Error
from vl2.core.logs import FIELDS
from vl2.core.types import Usage
from vl2.server.auth import INSIDE
from vl2.server.errors import (
    ANTHROPIC_PATHS,
    CLIENT_GONE,
    HTTP_CODES,
    ServerStopping,
    error_response,
    internal_error,
    status_of,
)
from vl2.server.metrics import Metrics
from vl2.server.streaming import WRITE
from vl2.server.tracing import HEADER as TRACE_HEADER
from vl2.server.tracing import RequestTrace, Tracing

logger = logging.getLogger(__name__)
T = TypeVar("T")

UNTOLD = "vl2.untold"
"""In the scope of the server's own requests that are neither counted nor logged. Nothing that is sent can put it there.
"""

REQUEST_ID_HEADER = "X-Request-Id"
ANTHROPIC_ID_HEADER = "Request-Id"  # where Anthropic's clients look for it
TIMING_HEADER = "X-VL2-Timing"
TIMEOUT_HEADER = "X-Request-Timeout"
MAX_TIMEOUT_S = 86_400
QUIET_ROUTES = (
    "/health",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/status/data",
)  # asked every few seconds: logged at debug level


@dataclass
class RequestRecord:
    """Filled on the request's way; never holds a prompt, a picture or a key."""

    request_id: str
    started_s: float = field(default_factory=time.monotonic)
    status: int = 0  # what became of it: also 500 for a stream that broke, 499 for a client that left
    is_started: bool = False  # the status line is out
    is_complete: bool = False
    error_code: str | None = None
    error_param: str | None = None  # the field of the request that the error is about
    answer_id: str | None = None  # the request's name in the engine's log
    first_token_s: float | None = None
    num_tokens: int = 0  # of the answer so far
    usage: Usage | None = None
    headers: dict[str, str] = field(default_factory=dict)  # of the answer, beside the route's own
    wants_timing: bool = False
    trace: RequestTrace | None = None
    may_reuse: bool = True  # a stored answer; not with Cache-Control: no-cache or no-store
    sent_timeout: str | None = None  # X-Request-Timeout as it was sent
    expires_s: float | None = None  # on the event loop's clock

    def age_s(self) -> float:
        return time.monotonic() - self.started_s

    def set_deadline(self) -> None:
        """From the header, counted from the request's arrival. Raises: InvalidRequest."""
        if self.sent_timeout is None:
            return
        try:
            timeout_s = float(self.sent_timeout)
        except ValueError:
            timeout_s = math.nan
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise InvalidRequest(
                f"{TIMEOUT_HEADER} is {self.sent_timeout[:40]!r}, but must be seconds, at most {MAX_TIMEOUT_S}"
            )
        self.expires_s = asyncio.get_running_loop().time() + timeout_s - self.age_s()

    def left_s(self) -> float | None:
        """Until the deadline; None without one."""
        if self.expires_s is None:
            return None
        return max(0.001, self.expires_s - asyncio.get_running_loop().time())

    async def in_time(self, work: Awaitable[T]) -> T:
        """What comes before the model is asked. Raises: DeadlineExceeded, or as `work`."""
        try:
            return await asyncio.wait_for(work, self.left_s())
        except asyncio.TimeoutError:
            raise DeadlineExceeded("the request's own deadline (X-Request-Timeout) passed") from None

    def fail(self, error: VL2Error) -> None:
        """The answer broke after its status line was sent."""
        self.status, self.error_code = status_of(error), error.code


def record_of(request: Request) -> RequestRecord:
    record = request.state.record
    assert isinstance(record, RequestRecord)
    return record


def note_error(request: Request, code: str) -> None:
    """For the log line, where requests have one: the admin port's have none."""
    if hasattr(request.state, "record"):
        request.state.record.error_code = code


class RecordRequests:
    """The outermost layer: gives each request its record, and turns a bug into a 500 that says nothing."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, routes: Iterable[BaseRoute], tracing: Tracing | None = None
    ) -> None:
        self.app = app
        self.metrics, self.tracing = metrics, tracing
        self.routes = [route for route in routes if isinstance(route, Route)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = RequestRecord(choose_request_id(headers.get(REQUEST_ID_HEADER)))
        record.sent_timeout = headers.get(TIMEOUT_HEADER)
        record.wants_timing = headers.get(TIMING_HEADER, "").lower() in ("1", "true", "yes")
        record.may_reuse = not re.search("no-cache|no-store", headers.get("cache-control", ""), re.IGNORECASE)
        scope.setdefault("state", {})["record"] = record
        scope[WRITE] = send
        if scope["path"] in ANTHROPIC_PATHS:
            record.headers[ANTHROPIC_ID_HEADER] = record.request_id
        route = self._route_of(scope["path"])
        if self.tracing is not None and route not in QUIET_ROUTES and UNTOLD not in scope:
            record.trace = self.tracing.begin(scope["method"], route, headers)
            record.headers[TRACE_HEADER] = record.trace.traceparent

        async def watch_receive() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not record.is_complete:
                record.status = CLIENT_GONE
            return message

        async def watch_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status, record.is_started = record.status or message["status"], True
                MutableHeaders(scope=message).update(record.headers | {REQUEST_ID_HEADER: record.request_id})
            elif not message.get("more_body", False):
                record.is_complete = True
            await send(message)

        with self.metrics.in_flight.track_inprogress():
            try:
                await self.app(scope, watch_receive, watch_send)
            except asyncio.CancelledError:  # the server's time to finish is over; its task for this request ends here
                if record.status != CLIENT_GONE and not record.is_complete:
                    record.fail(ServerStopping())
                if INSIDE in scope:  # nobody to tell, and whoever cancelled a batch's line waits for its end
                    raise
                if not record.is_started:
                    await error_response(ServerStopping())(scope, receive, watch_send)
            except Exception:
                logger.exception("request_id=%s internal error", record.request_id)
                error = internal_error(record.request_id)
                record.fail(error)
                if record.is_started:
                    raise
                await error_response(error)(scope, receive, watch_send)
            finally:
                if UNTOLD not in scope:
                    self._finish(record, scope, route)

    def _route_of(self, path: str) -> str:
        """A template, so that the number of labels is bounded; also of a request that was refused on its way there."""
        return next((route.path for route in self.routes if route.path_regex.match(path)), "other")

    def _finish(self, record: RequestRecord, scope: Scope, route: str) -> None:
        status = record.status or CLIENT_GONE
        if record.error_code is None and status >= 400:
            record.error_code, record.error_param = scope["state"].get("error", (HTTP_CODES.get(status), None))
        if record.trace is not None:
            record.trace.end(status, record.error_code, record.first_token_s, record.usage)
        self.metrics.count_request(route, status, record.error_code, record.age_s())
        level = logging.DEBUG if route in QUIET_ROUTES else logging.INFO
        told = log_fields(record, scope["method"], route, status)
        logger.log(level, "%s", log_line(told), extra={FIELDS: told})


def log_fields(record: RequestRecord, method: str, route: str, status: int) -> dict[str, Any]:
    """What is told about a request; nothing of what was said."""
    told: dict[str, Any] = {"request_id": record.request_id, "method": method, "route": route, "status": status}
    told["seconds"] = round(record.age_s(), 4)
    if record.error_code:
        told["error"] = record.error_code
    if record.error_param and re.fullmatch(r"[A-Za-z_][\w.\[\]-]{0,99}", record.error_param, re.ASCII):
        told["param"] = record.error_param  # an unknown field's name is the client's own: only if it is plain
    if record.answer_id:
        told["answer_id"] = record.answer_id
    if record.trace is not None:
        told["trace_id"] = record.trace.trace_id
    if record.first_token_s is not None:
        told["first_token_s"] = round(record.first_token_s, 4)
    if record.usage:
        used = record.usage
        told |= {"prompt_tokens": used.prompt_tokens, "image_tokens": used.image_tokens}
        told |= {"cached_tokens": used.cached_tokens, "answer_tokens": used.completion_tokens}
    elif record.answer_id:
        told["answer_tokens"] = record.num_tokens  # of a client that left, or an answer that broke
    return told


def log_line(told: dict[str, Any]) -> str:
    """The same for people."""
    head = f"request_id={told['request_id']} {told['method']} {told['route']} {told['status']} {told['seconds']:.3f} s"
    words = [head, *(f"{name}={told[name]}" for name in ("error", "param", "answer_id") if name in told)]
    if "first_token_s" in told:
        words.append(f"first_token={told['first_token_s']:.3f} s")
    words += [f"{name}={told[f'{name}_tokens']}" for name in ("prompt", "image", "cached") if f"{name}_tokens" in told]
    if "answer_tokens" in told:
        words.append(f"answer={told['answer_tokens']} tokens")
    return " ".join(words)


def choose_request_id(sent: str | None) -> str:
    """The client's id where it is short and plain, so that it can stand in a log; else a new one."""
    if sent and re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", sent):
        return sent
    return uuid.uuid4().hex
