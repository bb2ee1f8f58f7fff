"""Who holds which page of the KV pool. Pages are plain ints; no tensor is seen here."""

from __future__ import annotations


class PageAllocator:
    """A free list. Page ids are handed out lowest first at the start and most recently freed first later."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-num_tokens // self.page_size)

    def grow(self, pages: list[int], num_tokens: int) -> bool:
        """Add pages until they hold `num_tokens`; False, and nothing taken, when too few are free."""
        missing = self.pages_for(num_tokens) - len(pages)
        if missing > len(self._free):
            return False
        pages.extend(self._free.pop() for _ in range(missing))
        return True

    def release(self, pages: list[int]) -> None:
        """Give all pages back and empty the list."""
        self._free.extend(reversed(pages))
        pages.clear()
        assert len(self._free) <= self.num_pages, "a page was released twice"
