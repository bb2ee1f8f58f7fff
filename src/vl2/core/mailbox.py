"""What is left for one task to read, when it comes to it."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """An `asyncio.Queue` without a bound and for a single reader, who takes all at once: tokens pass two of them, and
    half of what the queue does for each is for readers and writers that there are not.
    """

    __slots__ = ("_items", "_reader")

    def __init__(self) -> None:
        self._items: list[T] = []
        self._reader: asyncio.Future[None] | None = None  # while it waits

    def __bool__(self) -> bool:
        """Whether something is there."""
        return bool(self._items)

    @property
    def first(self) -> T:
        """What came first of all that is there. Raises: IndexError."""
        return self._items[0]

    def put(self, item: T) -> None:
        self._items.append(item)
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():  # else it was cancelled
            reader.set_result(None)

    async def wait(self) -> None:
        """Returns when something is there, which stays there."""
        while not self._items:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader

    def take(self) -> list[T]:
        """All that is there, in the order in which it came; nothing is left."""
        items, self._items = self._items, []
        return items
