"""Drawing for several trainings: each gets everything that is drawn, and none waits for one that has ended."""

import multiprocessing as mp

import feed
import pytest
from pack import make_batch

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
