"""Which slot of the feature table holds which encoded tile. Slots are plain ints; no tensor is seen here."""

from __future__ import annotations

from collections import Counter, OrderedDict


class TileCache:
    """Slots by tile key, with pins. An unpinned tile stays until its slot is needed, least recently used first.

    A slot is `acquired` before its tile is encoded; `take_unencoded` hands out what is still to be encoded, once.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.hits_total = 0
        self._free = list(range(num_slots - 1, -1, -1))
        self._slots: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        self._pins: Counter[int] = Counter()
        self._unpinned: OrderedDict[int, None] = OrderedDict()  # oldest first
        self._unencoded: set[int] = set()

    @property
    def num_used(self) -> int:
        """Slots that hold a tile, or will."""
        return self.num_slots - len(self._free)

    def acquire(self, keys: list[bytes]) -> list[int] | None:
        """Pin a slot for each tile (equal keys share one); None, and nothing pinned, when they do not all fit."""
        known = {self._slots[key] for key in keys if key in self._slots}
        num_new = len({key for key in keys if key not in self._slots})
        num_evictable = sum(slot not in known for slot in self._unpinned)
        if num_new > len(self._free) + num_evictable:
            return None
        for slot in known:
            self._pin(slot)  # first, so that making room cannot evict them
        slots = []
        for key in keys:
            if key in self._slots:
                self.hits_total += self._slots[key] not in self._unencoded
            else:
                self._assign(key)
            slots.append(self._slots[key])
        for slot in known:
            self._pins[slot] -= 1
        for slot in slots:
            self._pin(slot)
        return slots

    def take_unencoded(self, slots: list[int], budget: int) -> list[int]:
        """Up to `budget` of these slots whose tiles must be encoded now; they count as encoded from here on."""
        taken = [slot for slot in dict.fromkeys(slots) if slot in self._unencoded][:budget]
        self._unencoded.difference_update(taken)
        return taken

    def are_encoded(self, slots: list[int]) -> bool:
        return self._unencoded.isdisjoint(slots)

    def release(self, slots: list[int]) -> None:
        """Unpin; a tile that was never encoded is forgotten at its last pin."""
        for slot in slots:
            self._pins[slot] -= 1
            assert self._pins[slot] >= 0, "a slot was released twice"
            if self._pins[slot] == 0:
                if slot in self._unencoded:
                    self._forget(slot)
                else:
                    self._unpinned[slot] = None

    def invalidate(self, slots: list[int]) -> None:
        """Their encoding failed: whoever still needs them must encode them again."""
        self._unencoded.update(slots)

    def _assign(self, key: bytes) -> None:
        if not self._free:
            self._forget(next(iter(self._unpinned)))
        slot = self._free.pop()
        self._slots[key], self._keys[slot] = slot, key
        self._unencoded.add(slot)

    def _forget(self, slot: int) -> None:
        self._unpinned.pop(slot, None)
        self._unencoded.discard(slot)
        del self._slots[self._keys.pop(slot)]
        self._free.append(slot)

    def _pin(self, slot: int) -> None:
        self._pins[slot] += 1
        self._unpinned.pop(slot, None)
