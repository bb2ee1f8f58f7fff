"""What several front-end processes must share to be right: quotas, kept responses, uploaded files. The hub has them.

`services` is the hub's side; `SharedState` a front-end's. Bodies are msgpack of the very dataclasses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from vl2.core.interface import Caller, Service
from vl2.server.batch.files import FileStore
from vl2.server.quotas import Quotas, is_limited
from vl2.server.responses.store import ResponseStore, Stored
from vl2.server.tenants import Key

encode = msgspec.msgpack.encode
Name = tuple[str, str, str | None]
"""Id, tenant, the request's field that the id came from."""


class HubState:
    """The hub's own objects, as services for front-ends."""

    def __init__(self, quotas: Quotas, responses: ResponseStore, files: FileStore | None) -> None:
        self._quotas, self._responses, self._files = quotas, responses, files
        self._held: dict[str, Counter[Key]] = {}  # front-end → requests under way of limited keys

    def services(self) -> dict[str, Service]:
        return {
            "quota.take": self._take,
            "quota.give_back": self._give_back,
            "responses.put": self._put,
            "responses.get": self._get,
            "responses.delete": self._delete,
            "files.read": self._read,
        }

    def forget(self, frontend: str) -> None:
        """It is gone, and its requests with it."""
        for key in self._held.pop(frontend, Counter()).elements():
            self._quotas.give_back(key)

    async def _take(self, frontend: str, payload: bytes) -> bytes:
        key = msgspec.msgpack.decode(payload, type=Key)
        self._quotas.take(key)
        self._held.setdefault(frontend, Counter())[key] += 1
        return b""

    async def _give_back(self, frontend: str, payload: bytes) -> bytes:
        key = msgspec.msgpack.decode(payload, type=Key)
        if self._held.get(frontend, Counter())[key]:
            self._held[frontend][key] -= 1
            self._quotas.give_back(key)
        return b""

    async def _put(self, frontend: str, payload: bytes) -> bytes:
        await self._responses.put(msgspec.msgpack.decode(payload, type=Stored))
        return b""

    async def _get(self, frontend: str, payload: bytes) -> bytes:
        return encode(await self._responses.get(*msgspec.msgpack.decode(payload, type=Name)))

    async def _delete(self, frontend: str, payload: bytes) -> bytes:
        response_id, tenant, _ = msgspec.msgpack.decode(payload, type=Name)
        await self._responses.delete(response_id, tenant)
        return b""

    async def _read(self, frontend: str, payload: bytes) -> bytes:
        file_id, tenant, _ = msgspec.msgpack.decode(payload, type=Name)
        assert self._files is not None, "front-ends ask only where files are kept"
        return await self._files.read(tenant, file_id)


@dataclass(frozen=True)
class SharedState:
    """A front-end's way to them. Implements `HoldQuota` and `KeepResponses`."""

    hub: Caller

    @asynccontextmanager
    async def hold(self, key: Key) -> AsyncIterator[None]:
        """For as long as a request is answered. Raises: RateLimited."""
        if not is_limited(key):
            yield
            return
        await self.hub.call("quota.take", encode(key))
        try:
            yield
        except BaseException:  # nothing may be waited for any more
            self.hub.tell("quota.give_back", encode(key))
            raise
        await self.hub.call("quota.give_back", encode(key))  # the next request may come by another front-end

    async def put(self, stored: Stored) -> None:
        await self.hub.call("responses.put", encode(stored))

    async def get(self, response_id: str, tenant: str, param: str | None = None) -> Stored:
        """Raises: NotFound."""
        payload = await self.hub.call("responses.get", encode((response_id, tenant, param)))
        return msgspec.msgpack.decode(payload, type=Stored)

    async def delete(self, response_id: str, tenant: str) -> None:
        """Raises: NotFound."""
        await self.hub.call("responses.delete", encode((response_id, tenant, None)))

    async def read_file(self, tenant: str, file_id: str) -> bytes:
        """Raises: NotFound."""
        return await self.hub.call("files.read", encode((file_id, tenant, None)))
