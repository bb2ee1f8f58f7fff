"""Messages over a real socket on an event loop: all of them, in order, whoever is there first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from vl2.engine.channel import MOST_AT_ONCE, Channel

LIMIT_S = 180.0
"""Of a wait for what must come. Nothing is proved by it."""


class End:
    """A channel, and what has come."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.came: list[list[bytes]] = []
        self.news = asyncio.Event()

    def take(self, frames: list[zmq.Frame]) -> None:
        self.came.append([frame.bytes for frame in frames])
        self.news.set()

    async def has(self, number: int) -> None:
        async def wait() -> None:
            while len(self.came) < number:
                self.news.clear()
                await self.news.wait()

        await asyncio.wait_for(wait(), LIMIT_S)


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[End, End]]:
    """Of a pair: the one that listens to the other's coming, and the other, not connected yet."""
    bound, other = End(Channel(zmq.PAIR)), End(Channel(zmq.PAIR))
    bound.channel.bind(f"ipc://{tmp_path}/pair")
    yield bound, other
    bound.channel.close()
    other.channel.close()


async def test_what_is_sent_before_anyone_is_there_comes_first(ends: tuple[End, End], tmp_path: Path) -> None:
    bound, other = ends
    bound.channel.listen(bound.take)
    for idx in range(3):
        bound.channel.send([b"early", b"%d" % idx])
    await asyncio.sleep(0.01)
    other.channel.connect(f"ipc://{tmp_path}/pair")
    other.channel.listen(other.take)
    await other.has(3)
    bound.channel.send([b"late"])
    await other.has(4)
    assert other.came == [[b"early", b"0"], [b"early", b"1"], [b"early", b"2"], [b"late"]]


async def test_more_messages_than_are_taken_at_once_all_come_in_order(ends: tuple[End, End], tmp_path: Path) -> None:
    other = ends[1]
    other.channel.connect(f"ipc://{tmp_path}/pair")
    for end in ends:
        end.channel.listen(end.take)
    num = 5 * MOST_AT_ONCE + 1
    for idx in range(num):
        for end in ends:
            end.channel.send([b"%d" % idx], copy=idx % 2 == 0)
        if idx % 50 == 0:
            await asyncio.sleep(0)
    for end in ends:
        await end.has(num)
        assert end.came == [[b"%d" % idx] for idx in range(num)]


async def test_answers_from_within_a_message_are_sent(ends: tuple[End, End], tmp_path: Path) -> None:
    """Each side sends while it takes: no edge of the descriptor may be lost."""
    bound, other = ends
    other.channel.connect(f"ipc://{tmp_path}/pair")
    bound.channel.listen(lambda frames: bound.channel.send([frames[0].bytes + b"!"]))

    def answer(frames: list[zmq.Frame]) -> None:
        other.take(frames)
        if len(other.came) < 300:
            other.channel.send([b"%d" % len(other.came)])

    other.channel.listen(answer)
    other.channel.send([b"0"])
    await other.has(300)
    assert other.came == [[b"%d!" % idx] for idx in range(300)]


async def test_a_message_that_cannot_be_taken_costs_no_other(
    ends: tuple[End, End], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bound, other = ends
    other.channel.connect(f"ipc://{tmp_path}/pair")

    def take(frames: list[zmq.Frame]) -> None:
        if frames[0].bytes == b"bad":
            raise ValueError("what is that?")
        bound.take(frames)

    bound.channel.listen(take)
    for text in (b"one", b"bad", b"two"):
        other.channel.send([text])
    await bound.has(2)
    assert bound.came == [[b"one"], [b"two"]] and "could not be taken" in caplog.text


async def test_what_cannot_be_sent_costs_no_other(
    ends: tuple[End, End], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does it end what is received."""
    bound, other = ends
    bound.channel.listen(bound.take)
    other.channel.listen(other.take)
    for message in ([b"one"], ["text"], [b"two"]):
        other.channel.send(message)  # type: ignore[arg-type]  # no bytes, which is a fault of ours
    other.channel.connect(f"ipc://{tmp_path}/pair")
    await bound.has(2)
    bound.channel.send([b"back"])
    await other.has(1)
    assert bound.came == [[b"one"], [b"two"]] and "could not be sent" in caplog.text


async def test_nothing_comes_after_it_is_closed_in_the_middle_of_messages(
    ends: tuple[End, End], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bound, other = ends
    other.channel.connect(f"ipc://{tmp_path}/pair")

    def take(frames: list[zmq.Frame]) -> None:
        bound.take(frames)
        bound.channel.close()

    bound.channel.listen(take)
    for _ in range(3):
        other.channel.send([b"x"])
    await bound.has(1)
    await asyncio.sleep(0.01)
    bound.channel.send([b"y"])
    bound.channel.close()
    assert len(bound.came) == 1 and not [record for record in caplog.records if record.levelno >= logging.WARNING]
