"""Drawing for several trainings: each gets everything that is drawn, and none waits for one that has ended. What is
shown again, and how often.
"""

import itertools
import multiprocessing as mp
from types import SimpleNamespace

import feed
import numpy as np
import pytest
from pack import make_batch
from sheets import sheet_batch

COUNT = 2
MOST_ROUNDS = 100_000


@pytest.fixture
def workers(monkeypatch):
    batch = make_batch(((1, 1),), 1, 1, 1)

    def numbered(number, menu, progress, room):
        room[0] = number
        return batch

    monkeypatch.setattr(feed, "training_batch", numbered)
    monkeypatch.setattr(feed, "ROOM", 1)
    monkeypatch.setattr(feed.mp, "Process", mp.get_context("fork").Process)
    made = feed.Workers(COUNT, 0, feed.Menu(1, 0.5, 0.1, 0.3), mp.Value("d", 0.0), trainings=2)
    made.go()
    made.go()  # the second training's, which changes nothing
    yield made
    made.stop()


def take(workers, training, how_many):
    numbers = []
    for _ in range(how_many):
        slot, _ = workers.next(training)
        numbers.append(int(workers.rooms[slot, 0, 0, 0, 0]))
        workers.done(slot, training)
    return numbers


def test_two_trainings_see_the_same_scenes(workers):
    """However unequally the processes that draw are given the processor."""
    seen, every = [[], []], set(range(2 * workers.slots))
    for _ in range(MOST_ROUNDS):
        for k in (0, 1):
            seen[k] += take(workers, k, 1)
        if every <= set(seen[0]) & set(seen[1]):
            break
    assert every <= set(seen[0]) & set(seen[1])
    assert all(len(set(numbers)) == len(numbers) for numbers in seen)


def test_a_training_that_ended_keeps_nobody_waiting(workers):
    take(workers, 0, 3)
    assert not workers.leads(1)
    workers.leave(0, patience_s=0.3)
    assert workers.leads(1)
    numbers = take(workers, 1, 4 * workers.slots)
    assert len(set(numbers)) == len(numbers)


class Drawer:
    """In the place of `Workers`: one sheet, nine micro-batches of scenes, one sheet …, as fast as they are wanted."""

    def __init__(self):
        self.rooms = np.zeros((1, 2, 384, 384, 3), np.uint8)
        self.kinds = itertools.cycle([sheet_batch(1, 6, tiles=2)] + 9 * [make_batch(((1, 1),), 1, 2, 1)])

    def next(self, training):
        return 0, next(self.kinds).map(lambda tensor: tensor)  # a batch of its own

    done = staticmethod(lambda slot, training: None)


def test_a_tenth_of_what_is_drawn_are_sheets_and_a_third_of_what_is_shown():
    feeder = feed.Feeder(Drawer(), "cpu", sheets=1 / 3)
    shown = [feeder.next()[0].is_sheet for _ in range(300)]
    assert abs(sum(shown) - 100) <= 3
    assert feeder.fresh_scenes == shown.count(False)  # no scene is shown again while there are others


def test_where_drawing_is_too_slow_the_oldest_scenes_are_asked_anew():
    slow = SimpleNamespace(next=lambda training: feed.threading.Event().wait(), done=None)
    feeder = feed.Feeder(slow, "cpu", sheets=0.3, patience=1)
    batches = [make_batch(((1, 1),), seed, 1, sets=3) for seed in (1, 2, 3)]
    feeder.used[False] += [(batch, 1) for batch in batches]
    assert [feeder.next() for _ in range(4)] == [(batches[i], r) for i, r in ((0, 1), (1, 1), (2, 1), (0, 2))]
