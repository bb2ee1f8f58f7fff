import pytest

from vl2.engine.pages import PagePool


def test_pages_are_taken_as_a_sequence_grows_and_only_when_one_is_full():
    allocator = PagePool(num_pages=4, page_size=16)
    pages: list[int] = []
    assert allocator.grow(pages, 1) and len(pages) == 1
    assert allocator.grow(pages, 16) and len(pages) == 1
    assert allocator.grow(pages, 17) and len(pages) == 2


def test_growing_takes_nothing_when_too_few_pages_are_free():
    allocator = PagePool(num_pages=2, page_size=16)
    pages: list[int] = []
    assert not allocator.grow(pages, 48)
    assert pages == [] and allocator.num_free == 2


def test_no_two_sequences_hold_the_same_page():
    allocator = PagePool(num_pages=6, page_size=1)
    first: list[int] = []
    second: list[int] = []
    allocator.grow(first, 3)
    allocator.grow(second, 3)
    assert set(first).isdisjoint(second)


def test_a_page_cannot_be_released_twice():
    allocator = PagePool(num_pages=1, page_size=1)
    with pytest.raises(AssertionError):
        allocator.release([0])


def filled(pool: PagePool, *keys: bytes) -> list[int]:
    """Pages of a sequence that computed and published these, and let go of them."""
    pages: list[int] = []
    assert pool.grow(pages, len(keys) * pool.page_size)
    for page, key in zip(pages, keys, strict=True):
        pool.publish(page, key)
    held = pages.copy()
    pool.release(pages)
    return held


def test_a_published_prefix_is_found_again_as_far_as_it_goes():
    pool = PagePool(num_pages=4, page_size=16)
    first, second = filled(pool, b"a", b"ab")
    assert pool.match([b"a", b"ab", b"abc"]) == [first, second]
    assert pool.match([b"b", b"ab"]) == [], "a page counts only behind all those before it"


def test_pages_of_a_known_prefix_can_be_held_by_many_and_are_free_when_none_does():
    pool = PagePool(num_pages=1, page_size=16)
    filled(pool, b"a")
    one, two = pool.match([b"a"]), pool.match([b"a"])
    assert one == two and pool.num_free == 0
    pool.release(one)
    assert pool.num_free == 0
    pool.release(two)
    assert pool.num_free == 1


def test_room_is_made_at_the_end_of_the_least_recently_used_prefix():
    pool = PagePool(num_pages=4, page_size=1)
    filled(pool, b"old", b"old+")
    filled(pool, b"new", b"new+")
    pages: list[int] = []
    assert pool.grow(pages, 1)
    assert len(pool.match([b"old", b"old+"])) == 1 and len(pool.match([b"new", b"new+"])) == 2


def test_two_sequences_that_computed_the_same_page_keep_their_own_and_the_first_is_shared():
    pool = PagePool(num_pages=2, page_size=1)
    pages: list[int] = []
    pool.grow(pages, 2)
    for page in pages:
        pool.publish(page, b"same")
    first = pages[0]
    pool.release(pages)
    assert pool.match([b"same"]) == [first] and pool.num_free == 1
