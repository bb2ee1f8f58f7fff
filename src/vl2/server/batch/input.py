"""The lines of a batch's input file, checked before any of them is asked."""

from __future__ import annotations

import json
from typing import Any

from vl2.core.errors import InvalidRequest
from vl2.server.batch.batches import Line
from vl2.server.intake import parse_json

ENDPOINTS = ("/v1/chat/completions", "/v1/responses", "/v1/messages")
MAX_ERRORS = 20
MAX_DEPTH, MAX_VALUES = 64, 200_000
MAX_CUSTOM_ID_CHARS = 256


def read_lines(data: bytes, endpoint: str, max_lines: int) -> tuple[list[Line], list[dict[str, Any]]]:
    """The requests, or what is wrong with the file, in OpenAI's form."""
    lines: list[Line] = []
    errors: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, raw in enumerate(data.split(b"\n"), 1):
        if not raw.strip():
            continue
        if len(lines) >= max_lines:
            errors.append(_error("too_many_lines", f"there are more than {max_lines} lines", number))
            break
        try:
            lines.append(_line(raw, len(lines), endpoint, seen))
        except InvalidRequest as error:
            errors.append(_error("invalid_line", error.message, number, error.param))
        if len(errors) >= MAX_ERRORS:
            break
    if not lines and not errors:
        errors.append(_error("empty_file", "the input file has no lines, or is gone", None))
    return lines, errors


def _line(raw: bytes, line_idx: int, endpoint: str, seen: set[str]) -> Line:
    entry = parse_json(raw, MAX_DEPTH, MAX_VALUES)

    def check(is_good: bool, rule: str, param: str | None = None) -> None:
        if not is_good:
            raise InvalidRequest(rule, param=param)

    check(isinstance(entry, dict), "the line must be a JSON object")
    custom_id, body = entry.get("custom_id"), entry.get("body")
    is_named = isinstance(custom_id, str) and 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARS
    check(is_named, f"custom_id must be a text of at most {MAX_CUSTOM_ID_CHARS} characters", "custom_id")
    check(custom_id not in seen, f"custom_id {custom_id!r:.80} stands on another line too", "custom_id")
    check(entry.get("method") == "POST", "method must be POST", "method")
    check(entry.get("url") == endpoint, f"url must be {endpoint}, the batch's endpoint", "url")
    check(isinstance(body, dict), "body must be a JSON object", "body")
    check(not body.get("stream"), "body.stream must be left out", "body.stream")
    try:
        text = json.dumps(body, ensure_ascii=False, allow_nan=False)
        (text + custom_id).encode()
    except ValueError:
        raise InvalidRequest("the line holds what is no JSON or no Unicode text") from None
    seen.add(custom_id)
    return Line(line_idx, custom_id, text)


def _error(code: str, message: str, line: int | None, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": param}
