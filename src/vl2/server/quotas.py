"""How much each key may ask: requests a minute, and at the same time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from vl2.core.errors import RateLimited
from vl2.server.tenants import Key


class HoldQuota(Protocol):
    """Where a key's use is counted: here, or by the hub for all front-ends."""

    def hold(self, key: Key) -> AbstractAsyncContextManager[None]:
        """For as long as a request is answered: it is given back when this has ended. Raises: RateLimited."""


def is_limited(key: Key) -> bool:
    return key.requests_per_minute is not None or key.max_concurrent is not None


@dataclass(slots=True)
class _Use:
    tokens: float
    refilled_s: float
    num_running: int = 0


class Quotas:
    """A bucket of requests for each key: it holds a minute's worth and fills evenly."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[bytes, _Use] = {}

    @asynccontextmanager
    async def hold(self, key: Key) -> AsyncIterator[None]:
        """For as long as a request is answered. Raises: RateLimited."""
        if not is_limited(key):
            yield
            return
        self.take(key)
        try:
            yield
        finally:
            self.give_back(key)

    def take(self, key: Key) -> None:
        """One more request of a limited key. Raises: RateLimited."""
        use = self._uses.setdefault(key.digest, _Use(float(key.requests_per_minute or 0), self._clock()))
        if key.max_concurrent is not None and use.num_running >= key.max_concurrent:
            raise RateLimited(f"this key may have {key.max_concurrent} requests running at a time, and has")
        if key.requests_per_minute is not None:
            self._pay(use, key.requests_per_minute)
        use.num_running += 1

    def give_back(self, key: Key) -> None:
        """The request has ended."""
        self._uses[key.digest].num_running -= 1

    def _pay(self, use: _Use, per_minute: int) -> None:
        now_s = self._clock()
        use.tokens = min(per_minute, use.tokens + (now_s - use.refilled_s) * per_minute / 60)
        use.refilled_s = now_s
        if use.tokens < 1:
            wait_s = (1 - use.tokens) * 60 / per_minute
            raise RateLimited(f"this key may send {per_minute} requests a minute", retry_after_s=wait_s)
        use.tokens -= 1
