"""Query parameters are in the three classes of fields too: what a route declares works, a few that clients send are
hints, and any other is a 400 that names it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal

from fastapi import Query

from vl2.core.errors import InvalidRequest
from vl2.server.errors import did_you_mean
from vl2.server.fields import Row

HINTS = {
    "beta": "of Anthropic's client",
    "include": "what is kept is always told as it is",
    "include_obfuscation": "answers are not padded",
}
HARMLESS = {"stream": "false"}

After = Annotated[str | None, Query(description="id of the last entry of the page before")]
Order = Annotated[Literal["asc", "desc"], Query(description="by age; desc: newest first")]


def check_query(sent: Iterable[tuple[str, str]], declared: Collection[str]) -> list[str]:
    """The hints that were sent. Raises: InvalidRequest for what is neither a hint nor declared by the route."""
    hints = []
    for name, value in sent:
        plain = name.removesuffix("[]")  # how clients write lists
        if plain in HINTS and plain not in declared:
            hints.append(plain)
        elif name not in declared and HARMLESS.get(name) != value:
            hint = did_you_mean(name, list(declared))
            raise InvalidRequest(f"{name[:100]} is not a query parameter of this route{hint}", param=name[:100])
    return list(dict.fromkeys(hints))


def page(items: list[dict[str, Any]], limit: int, after: str | None) -> dict[str, Any]:
    """`after`: the id of the last entry of the page before."""
    start = next((idx + 1 for idx, item in enumerate(items) if item["id"] == after), 0 if after is None else len(items))
    data = items[start : start + limit]
    edges = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return {"object": "list", "data": data, **edges, "has_more": start + limit < len(items)}


def declared_by(route: Any) -> dict[str, str]:
    """Name → description of the query parameters of one of FastAPI's routes."""
    return {field.alias: field.field_info.description or "" for field in route.dependant.query_params}


def query_table(routes: Iterable[Any]) -> dict[str, list[Row]]:
    """Route → its parameters, for those that have some."""
    rows = {
        f"{method} {route.path}": [Row(name, "works", note) for name, note in declared_by(route).items()]
        for route in routes
        for method in sorted(route.methods)
    }
    hints = [Row(name, "hint", note) for name, note in HINTS.items()]
    return {name: found for name, found in rows.items() if found} | {"any route": hints}
