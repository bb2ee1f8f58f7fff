"""Who holds which page of the KV pool, and which pages hold a known prefix. Pages are ints; no tensor is seen here."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

import numpy as np


def cache_slots(pages: np.ndarray, positions: np.ndarray, page_size: int) -> np.ndarray:
    """Rows of the cache that hold these positions [T], each of which is in its page [T]."""
    return pages * np.int64(page_size) + positions % page_size


class PagePool:
    """Pages with reference counts. A full page may be published under its key (engine/prefix.py); it then stays when
    nobody holds it any more, until its room is needed, least recently used first.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders: Counter[int] = Counter()
        self._pages: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # published pages that nobody holds, oldest first

    @property
    def num_free(self) -> int:
        """Pages that can be had now, idle published ones included."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle(self) -> int:
        """Published pages that nobody holds."""
        return len(self._idle)

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-num_tokens // self.page_size)

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """Pages of the longest known prefix, in order; they are held by the caller from now on."""
        pages = []
        for key in keys:
            page = self._pages.get(key)
            if page is None:
                break
            pages.append(page)
        for page in pages:
            self._hold(page)
        return pages

    def grow(self, pages: list[int], num_tokens: int) -> bool:
        """Add pages until they hold `num_tokens`; False, and nothing taken, when too few can be had."""
        missing = self.pages_for(num_tokens) - len(pages)
        if missing > self.num_free:
            return False
        for _ in range(missing):
            page = self._free.pop() if self._free else self._evict()
            self._hold(page)
            pages.append(page)
        return True

    def publish(self, page: int, key: bytes) -> None:
        """A held page is full and will not change: others may share it. The first page under a key stays the one."""
        if key not in self._pages and page not in self._keys:
            self._pages[key], self._keys[page] = page, key

    def release(self, pages: list[int]) -> None:
        """Let go of all pages and empty the list. Later pages go first, so that a prefix is evicted from its end."""
        for page in reversed(pages):
            self._holders[page] -= 1
            assert self._holders[page] >= 0, "a page was released twice"
            if self._holders[page] == 0:
                if page in self._keys:
                    self._idle[page] = None
                else:
                    self._free.append(page)
        pages.clear()

    def _hold(self, page: int) -> None:
        self._holders[page] += 1
        self._idle.pop(page, None)

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        del self._pages[self._keys.pop(page)]
        return page
