import pytest

from vl2.engine.pages import PageAllocator


def test_pages_are_taken_as_a_sequence_grows_and_only_when_one_is_full():
    allocator = PageAllocator(num_pages=4, page_size=16)
    pages: list[int] = []
    assert allocator.grow(pages, 1) and len(pages) == 1
    assert allocator.grow(pages, 16) and len(pages) == 1
    assert allocator.grow(pages, 17) and len(pages) == 2


def test_growing_takes_nothing_when_too_few_pages_are_free():
    allocator = PageAllocator(num_pages=2, page_size=16)
    pages: list[int] = []
    assert not allocator.grow(pages, 48)
    assert pages == [] and allocator.num_free == 2


def test_no_two_sequences_hold_the_same_page():
    allocator = PageAllocator(num_pages=6, page_size=1)
    first: list[int] = []
    second: list[int] = []
    allocator.grow(first, 3)
    allocator.grow(second, 3)
    assert set(first).isdisjoint(second)


def test_a_page_cannot_be_released_twice():
    allocator = PageAllocator(num_pages=1, page_size=1)
    with pytest.raises(AssertionError):
        allocator.release([0])
