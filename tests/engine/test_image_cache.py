from vl2.engine.image_cache import TileCache


def test_equal_tiles_share_a_slot_and_are_encoded_once():
    cache = TileCache(num_slots=4)
    slots = cache.acquire([b"view", b"view"])
    assert slots is not None and slots[0] == slots[1]
    assert cache.take_unencoded(slots, budget=10) == [slots[0]]
    assert cache.take_unencoded(slots, budget=10) == []


def test_a_tile_that_is_not_pinned_any_more_is_still_found():
    cache = TileCache(num_slots=4)
    slots = cache.acquire([b"a"]) or []
    cache.take_unencoded(slots, 1)
    cache.release(slots)
    again = cache.acquire([b"a"])
    assert again == slots and cache.are_encoded(slots) and cache.hits_total == 1


def test_the_least_recently_used_tile_makes_room():
    cache = TileCache(num_slots=2)
    for key in (b"old", b"new"):
        slots = cache.acquire([key]) or []
        cache.take_unencoded(slots, 1)
        cache.release(slots)
    assert cache.acquire([b"third"]) is not None
    newer = cache.acquire([b"new"]) or []
    assert cache.are_encoded(newer), "the older one was evicted, not this"


def test_pinned_tiles_are_never_evicted_and_acquiring_is_all_or_nothing():
    cache = TileCache(num_slots=2)
    assert cache.acquire([b"a"]) is not None
    assert cache.acquire([b"b", b"c"]) is None
    assert cache.acquire([b"b"]) is not None, "the failed attempt held nothing back"


def test_a_tile_in_the_request_is_not_evicted_to_make_room_for_its_neighbour():
    cache = TileCache(num_slots=2)
    for key in (b"a", b"b"):
        slots = cache.acquire([key]) or []
        cache.take_unencoded(slots, 1)
        cache.release(slots)
    slots = cache.acquire([b"c", b"a"])
    assert slots is not None and slots[0] != slots[1] and cache.are_encoded([slots[1]])


def test_a_tile_released_before_it_was_encoded_is_forgotten():
    cache = TileCache(num_slots=1)
    cache.release(cache.acquire([b"a"]) or [])
    slots = cache.acquire([b"a"]) or []
    assert not cache.are_encoded(slots)


def test_a_tile_whose_encoding_failed_is_encoded_again():
    cache = TileCache(num_slots=1)
    slots = cache.acquire([b"a"]) or []
    assert cache.take_unencoded(slots, 1) == slots
    cache.invalidate(slots)
    assert cache.take_unencoded(slots, 1) == slots
