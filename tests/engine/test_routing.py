"""Which replica gets a request: the rule of `routing`, on prompts of plain numbers."""

import pytest

from tests.engine.builders import picture_prompt, text_prompt
from vl2.core.types import Prompt
from vl2.engine.routing import BLOCK_TOKENS, TOKENS_PER_ANSWER, Router, footprint

BOTH = (0, 1)
LONG = text_prompt(*range(10 * BLOCK_TOKENS))
OTHER = text_prompt(*range(50, 50 + 10 * BLOCK_TOKENS))


class Traffic:
    """Two replicas, and what they were sent."""

    def __init__(self, max_tiles: int = 100) -> None:
        self.router = Router(2, max_tiles=max_tiles)

    def send(self, prompt: Prompt, *, answers: int = 1):
        """Where the rule says; the prompt is computed at once, its answers are under way."""
        wanted = footprint(prompt)
        work = self.router.open(self.router.ranking(wanted, BOTH)[0], wanted, answers)
        work.prompt_tokens = 0
        return work

    def ask(self, prompt: Prompt) -> int:
        """A question that is answered before the next one comes; the replica that got it."""
        work = self.send(prompt)
        self.router.close(work)
        return work.replica_idx


def test_strangers_take_turns():
    traffic = Traffic()
    assert [traffic.ask(picture_prompt(name)) for name in (b"cat", b"dog", b"cow", b"hen")] == [0, 1, 0, 1]


def test_the_same_picture_goes_where_it_was_whatever_is_asked_about_it():
    traffic = Traffic()
    first = [traffic.ask(picture_prompt(name, after=(5,))) for name in (b"cat", b"dog", b"cow")]
    again = [traffic.ask(picture_prompt(name, before=(7, 7), after=(8,))) for name in (b"cow", b"cat", b"dog")]
    assert again == [first[2], first[0], first[1]]


def test_a_conversation_goes_where_its_beginning_is():
    traffic = Traffic()
    home = traffic.ask(LONG)
    assert traffic.ask(OTHER) != home
    for turn in range(3):
        assert traffic.ask(text_prompt(*LONG.token_ids, *[turn] * BLOCK_TOKENS)) == home


def test_the_least_loaded_gets_a_stranger():
    traffic = Traffic()
    busy = traffic.send(text_prompt(1, 2), answers=2)
    others = [traffic.send(text_prompt(3, 4)) for _ in range(2)]
    assert {work.replica_idx for work in others} == {1 - busy.replica_idx}
    traffic.router.close(busy)
    assert traffic.send(text_prompt(5, 6)).replica_idx == busy.replica_idx


def test_a_prompt_that_is_still_computed_weighs_its_length():
    traffic = Traffic()
    wanted = footprint(LONG)
    work = traffic.router.open(0, wanted, 1)
    stranger = footprint(text_prompt(1, 2, 3))
    for _ in range(4):
        traffic.router.open(1, stranger, 1)
    assert traffic.router.ranking(stranger, BOTH) == [1, 0], "four answers are less than ten blocks and an answer"
    work.prompt_tokens = 0
    assert traffic.router.ranking(stranger, BOTH) == [0, 1]


def test_a_hot_prompt_spreads_once_its_replica_is_behind_by_twice_what_starting_afresh_costs():
    traffic = Traffic()
    works = [traffic.send(LONG) for _ in range(40)]
    homes = [work.replica_idx for work in works]
    first_elsewhere = homes.index(1)
    assert first_elsewhere == 2 * len(LONG.token_ids) // TOKENS_PER_ANSWER
    assert homes[first_elsewhere + 1 :].count(0) == 10, "from then on both have it, and share"


def test_equal_ids_with_another_picture_or_salt_are_another_prefix():
    before = tuple(range(BLOCK_TOKENS - 2))  # the picture crosses the border between two blocks
    after = tuple(range(BLOCK_TOKENS))
    cat, dog = (footprint(picture_prompt(name, before=before, after=after)) for name in (b"cat", b"dog"))
    assert len(cat.blocks) == 2 and not set(cat.blocks) & set(dog.blocks)
    late = [footprint(picture_prompt(name, before=before * 2, after=after)) for name in (b"cat", b"dog")]
    assert late[0].blocks[0] == late[1].blocks[0], "before the picture they are the same"
    assert not set(footprint(LONG).blocks) & set(footprint(LONG, "tenant").blocks)


@pytest.mark.parametrize("length", [0, 1, BLOCK_TOKENS - 1, BLOCK_TOKENS, 3 * BLOCK_TOKENS + 1])
def test_only_whole_blocks_are_remembered(length: int):
    assert len(footprint(text_prompt(*range(length))).blocks) == length // BLOCK_TOKENS


def test_what_was_used_longest_ago_is_forgotten_first():
    traffic = Traffic(max_tiles=4)  # two pictures of two tiles
    router = traffic.router
    for name in (b"cat", b"dog", b"cat", b"cow"):
        router.close(router.open(0, footprint(picture_prompt(name)), 1))
    assert router.ranking(footprint(picture_prompt(b"cat")), BOTH) == [0, 1]
    assert router.ranking(footprint(picture_prompt(b"dog")), BOTH) == [1, 0]


def test_a_replica_that_starts_again_has_nothing():
    traffic = Traffic()
    home = traffic.ask(LONG)
    traffic.router.forget(home)
    assert traffic.ask(LONG) == 1 - home
