"""Every field of every dialect is in one of three classes, told where the field is declared:

works      declared plainly
hint       `Annotated[…, Hint()]`: taken without effect, as it never changes an answer; named in a response header
refused    `Annotated[Any, Refused(…)]`: it would change the answer and cannot be honoured, so it is a 400 that names it
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vl2.core.errors import InvalidRequest
from vl2.server.errors import did_you_mean

IGNORED_HEADER = "X-VL2-Ignored"
MAX_NAMED = 32  # hints in one header
NOT_SUPPORTED = "is not supported by this server"


@dataclass(frozen=True)
class Hint:
    note: str = ""


@dataclass(frozen=True)
class Refused:
    """`harmless`: values that change nothing, and are taken. Null never changes anything."""

    harmless: tuple[Any, ...] = ()
    reason: str = NOT_SUPPORTED


def check_fields(body: Any) -> list[str]:
    """Paths of the hints that were sent; one in a hundred messages is named once.

    Raises: InvalidRequest for a refused or unknown field.
    """
    return list(dict.fromkeys(re.sub(r"\[\d+\]", "[]", path) for path in _walk(body, "")))


def _walk(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for idx, item in enumerate(value):
            yield from _walk(item, f"{path}[{idx}]")
    if not hasattr(type(value), "model_fields"):
        return
    fields = type(value).model_fields
    for name, info in fields.items():
        sent = getattr(value, name)
        if sent is None or name not in value.model_fields_set:
            continue
        inner = f"{path}.{info.alias or name}" if path else info.alias or name
        mark = mark_of(info)
        if isinstance(mark, Hint):
            yield inner
        elif isinstance(mark, Refused):
            if not _is_harmless(sent, mark):
                raise InvalidRequest(f"{inner} {mark.reason}; leave it out", param=inner)
        else:
            yield from _walk(sent, inner)
    if not path:
        for name in value.model_extra or {}:
            hint = did_you_mean(name, list(fields))
            raise InvalidRequest(f"{name} is not a field of this API{hint}", param=name)


def _is_harmless(sent: Any, mark: Refused) -> bool:
    """By type too: 0 is not false."""
    return any(type(sent) is type(value) and sent == value for value in mark.harmless)


def mark_of(info: Any) -> Hint | Refused | None:
    return next((mark for mark in info.metadata if isinstance(mark, (Hint, Refused))), None)


def note_ignored(headers: dict[str, str], names: list[str]) -> None:
    """What a client may want to know: which of its fields did nothing. Added to those that `headers` name already."""
    known = headers[IGNORED_HEADER].split(", ") if IGNORED_HEADER in headers else []
    if known or names:
        headers[IGNORED_HEADER] = ", ".join([*known, *names][:MAX_NAMED])


# ---- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    path: str
    kind: str  # works, hint, refused
    note: str


def table(model: Any) -> list[Row]:
    """Each field of a body and of what it is made of, in order."""
    return list(dict.fromkeys(_rows(model, "", ())))


def _rows(model: Any, path: str, above: tuple[Any, ...]) -> Iterator[Row]:
    for name, info in model.model_fields.items():
        inner = f"{path}.{info.alias or name}" if path else info.alias or name
        mark = mark_of(info)
        if isinstance(mark, Hint):
            yield Row(inner, "hint", mark.note)
        elif isinstance(mark, Refused):
            values = ", ".join(f"`{_shown(value)}`" for value in mark.harmless)
            reason = "" if mark.reason == NOT_SUPPORTED else mark.reason
            yield Row(inner, "refused", "; ".join(filter(None, [reason, values and f"taken as {values}"])))
        else:
            yield Row(inner, "works", info.description or "")
            for part, suffix in _models_in(info.annotation, ""):
                if part not in above:
                    yield from _rows(part, inner + suffix, (*above, part))


def _models_in(hint: Any, suffix: str) -> Iterator[tuple[Any, str]]:
    """The models that a type is made of; those in a list with `[]`."""
    if hasattr(hint, "model_fields"):
        yield hint, suffix
        return
    origin = typing.get_origin(hint)
    for part in typing.get_args(hint):
        yield from _models_in(part, suffix + "[]" if origin is list else suffix)


def _shown(value: Any) -> str:
    return json.dumps(value)


def markdown(tables: Mapping[str, Sequence[Row]]) -> str:
    """Route → its fields, as one table each."""
    words = {"works": "works", "hint": "accepted without effect", "refused": "refused"}
    parts = []
    for route, rows in tables.items():
        parts += [f"## {route}", "", "| field | | |", "| --- | --- | --- |"]
        for row in rows:
            note = row.note.replace("|", "\\|")
            parts.append(f"| `{row.path}` | {words[row.kind]} | {note} |")
        parts.append("")
    return "\n".join(parts)
