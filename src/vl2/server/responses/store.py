"""Responses that may be continued: in memory, the newest ones, each its tenant's alone."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from vl2.server.ids import not_found
from vl2.server.turns import Reference, Turn

ENTRY_BYTES = 2000  # beside its texts
VALUE_BYTES = 64  # of each value in it, beside its characters


@dataclass(frozen=True)
class Stored:
    tenant: str
    response: dict[str, Any]
    turns: list[Turn]  # of the conversation up to and with the answer, without instructions
    input_items: list[dict[str, Any]]

    @cached_property
    def num_bytes(self) -> int:
        """At least what it takes: whatever a client can make long counts, also what is no text for the model."""
        parts = [part for turn in self.turns for part in turn.parts]
        turns = sum(4 * len(p) if isinstance(p, str) else _reference_bytes(p) for p in parts)
        return ENTRY_BYTES + turns + _value_bytes(self.response) + _value_bytes(self.input_items)


def _reference_bytes(reference: Reference) -> int:
    return len(reference.url or "") + len(reference.data or "")


def _value_bytes(value: Any) -> int:
    """Of parsed JSON, whose depth was limited when it came."""
    if isinstance(value, dict):
        return VALUE_BYTES + sum(len(name) + _value_bytes(item) for name, item in value.items())
    if isinstance(value, list):
        return VALUE_BYTES + sum(map(_value_bytes, value))
    return VALUE_BYTES + (len(value) if isinstance(value, str) else 0)


class KeepResponses(Protocol):
    """Where responses are kept: here, or by the hub for all front-ends."""

    async def put(self, stored: Stored) -> None: ...

    async def get(self, response_id: str, tenant: str, param: str | None = None) -> Stored:
        """Raises: NotFound, in the same words for another tenant's."""

    async def delete(self, response_id: str, tenant: str) -> None:
        """Raises: NotFound."""


class ResponseStore:
    def __init__(self, max_responses: int, max_bytes: int) -> None:
        self._max_responses, self._max_bytes = max_responses, max_bytes
        self._num_bytes = 0
        self._stored: OrderedDict[str, Stored] = OrderedDict()

    async def put(self, stored: Stored) -> None:
        """The oldest make room; one that is too large alone is not kept."""
        if stored.num_bytes > self._max_bytes:
            return
        self._stored[stored.response["id"]] = stored
        self._num_bytes += stored.num_bytes
        while self._stored and (len(self._stored) > self._max_responses or self._num_bytes > self._max_bytes):
            self._num_bytes -= self._stored.popitem(last=False)[1].num_bytes

    async def get(self, response_id: str, tenant: str, param: str | None = None) -> Stored:
        """Raises: NotFound, in the same words for another tenant's."""
        stored = self._stored.get(response_id)
        if stored is None or stored.tenant != tenant:
            raise not_found(response_id, param)
        return stored

    async def delete(self, response_id: str, tenant: str) -> None:
        """Raises: NotFound."""
        self._num_bytes -= (await self.get(response_id, tenant)).num_bytes
        del self._stored[response_id]
