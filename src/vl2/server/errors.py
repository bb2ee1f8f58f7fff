"""Every error of the HTTP API: one table from exception to status, one shape of body (OpenAI's)."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from vl2.core import errors as e

TABLE: dict[type[e.VL2Error], tuple[int, str]] = {
    e.RequestError: (400, "invalid_request_error"),
    e.Unauthorized: (401, "invalid_request_error"),
    e.Forbidden: (403, "invalid_request_error"),
    e.UnknownModel: (404, "invalid_request_error"),
    e.NotFound: (404, "invalid_request_error"),
    e.WrongMediaType: (415, "invalid_request_error"),
    e.TooLarge: (413, "invalid_request_error"),
    e.CapacityError: (429, "rate_limit_error"),
    e.NotReady: (503, "service_unavailable_error"),
    e.DeadlineExceeded: (504, "timeout_error"),
    e.VL2Error: (500, "server_error"),
}
"""Error class → status, OpenAI's `type`. A class that is not here has its nearest base class's line."""

CLIENT_GONE = 499  # nginx's number for a client that hung up before its answer; nobody receives it

HTTP_CODES = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed", CLIENT_GONE: "client_gone"}


class ServerStopping(e.NotReady):
    """The server takes nothing new, or its time to finish what runs is over."""

    code = "server_stopping"

    def __init__(self, *, was_running: bool = True) -> None:
        reason = "this answer was not finished in time" if was_running else "nothing new is taken"
        super().__init__(f"the server is stopping, and {reason}; ask again")


ANTHROPIC_PATHS = ("/v1/messages", "/v1/messages/count_tokens")
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


_FIELDS: dict[str, Any] = {name: {"type": ["string", "null"]} for name in ("param", "code")}
ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}, **_FIELDS},
        }
    },
}
_DOCUMENTED: dict[int | str, str] = {
    "4XX": "The request cannot be answered; `error` tells why",
    503: "The model is loading, or the server is stopping",
    504: "The request's deadline passed",
}
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": ERROR_SCHEMA}}}
    for status, text in _DOCUMENTED.items()
}
"""For the API's own description: every route may answer so."""


class ErrorResponse(JSONResponse):
    """An error in OpenAI's shape, or in Anthropic's on its routes.

    Whoever sends it leaves its code and param in `scope["state"]` for the log line.
    """

    def __init__(self, body: dict[str, Any], status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(body, status, headers)
        self._sent_body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._sent_body["error"]
        scope.setdefault("state", {})["error"] = (error["code"], error["param"])
        if scope["path"] in ANTHROPIC_PATHS:
            self.body = self.render(anthropic_body(error["message"], self.status_code))
            self.headers["content-length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def anthropic_body(message: str, status: int) -> dict[str, Any]:
    return {"type": "error", "error": {"type": ANTHROPIC_TYPES.get(status, "api_error"), "message": message}}


def status_of(error: e.VL2Error) -> int:
    return _line_of(error)[0]


def error_body(error: e.VL2Error) -> dict[str, Any]:
    return _body(error.message, _line_of(error)[1], error.code, error.param)


def error_response(error: e.VL2Error) -> ErrorResponse:
    status = status_of(error)
    headers = {}
    if isinstance(error, e.CapacityError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="vl2"'
    return ErrorResponse(error_body(error), status, headers)


def internal_error(request_id: str) -> e.EngineError:
    """What a client may know about a bug of ours."""
    return e.EngineError(f"internal error; the server's log has it under request id {request_id}")


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(e.VL2Error, _answer_vl2_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)


def _line_of(error: e.VL2Error) -> tuple[int, str]:
    return next(TABLE[cls] for cls in type(error).__mro__ if cls in TABLE)


def _body(message: str, kind: str, code: str | None, param: str | None) -> dict[str, Any]:
    fields = {"message": message, "type": kind, "param": param, "code": code}
    # What a client sent may stand in a message, lone surrogates and all; the answer must be UTF-8.
    return {"error": {key: value and value.encode(errors="backslashreplace").decode() for key, value in fields.items()}}


async def _answer_vl2_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, e.VL2Error)
    return error_response(error)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    cause = error.__cause__  # FastAPI wraps what goes wrong while it reads the body
    if isinstance(cause, e.VL2Error):
        return error_response(cause)
    if isinstance(cause, ClientDisconnect):
        return await _answer_nobody(request, cause)
    status, message = error.status_code, str(error.detail)
    if status == 404:
        message = f"there is no {request.url.path} here"
    elif status == 405:
        message = f"{request.url.path} does not take {request.method}"
    elif cause is not None:
        is_deep = isinstance(cause, RecursionError)
        message = "the body is nested too deeply" if is_deep else "the body is not JSON in UTF-8"
    kind = "invalid_request_error" if status < 500 else "server_error"
    return ErrorResponse(_body(message, kind, HTTP_CODES.get(status, "http_error"), None), status, error.headers)


async def _answer_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    message, param = describe(error.errors()[0])
    return error_response(e.InvalidRequest(message, param=param))


# ---- pydantic's errors in one readable sentence ---------------------------------------------------------------------

_WORDS = {
    "dict_type": "a JSON object",
    "model_type": "a JSON object",
    "model_attributes_type": "a JSON object",
    "list_type": "a list",
    "bool_type": "true or false",
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a string",
}


def describe(problem: dict[str, Any]) -> tuple[str, str | None]:
    """A pydantic error → what is wrong, and the path of the field: `messages[0].role`."""
    kind, sent = problem["type"], problem.get("input")
    if kind == "json_invalid":
        return f"the body is not valid JSON: {problem['ctx']['error']} at character {problem['loc'][-1]}", None
    path = field_path(problem["loc"])
    if path is None:
        if kind == "missing":
            return "the request has no body; it must be a JSON object", None
        return "the body must be a JSON object, sent with Content-Type: application/json", None
    if kind == "missing":
        return f"{path} is missing", path
    if kind == "extra_forbidden":
        return f"{path} is not a field of this API", path
    if kind in ("wrong_kind", "value_error"):
        return f"{path} {problem['msg'].removeprefix('Value error, ')}", path
    if kind == "too_short":
        return f"{path} must have at least one entry", path
    rule = problem["msg"].removeprefix("Input should be ").replace("greater than or equal to", "at least")
    return f"{path} is {_shorten(sent)}, but must be {_WORDS.get(kind, rule)}", path


def field_path(loc: Sequence[str | int]) -> str | None:
    """`("body", "messages", 0, "<text>", "role")` → `messages[0].role`: `<…>`, a branch of a union, is left out."""
    path = ""
    for step in loc[1:]:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith("<"):
            path += f".{step}" if path else step
    return path or None


def did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _shorten(value: Any) -> str:
    """A value as it was sent, at most about 60 characters of it."""
    names = {True: "true", False: "false", None: "null"}
    if value is None or isinstance(value, bool):
        return names[value]
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
