"""A mailbox gives its one reader all that came meanwhile, in order."""

from __future__ import annotations

import asyncio

from vl2.core.mailbox import Mailbox


async def test_a_reader_gets_at_once_what_came_meanwhile() -> None:
    mailbox: Mailbox[int] = Mailbox()
    assert not mailbox and mailbox.take() == []
    for number in (3, 1, 2):
        mailbox.put(number)
    await mailbox.wait()
    assert mailbox and mailbox.first == 3 and mailbox.take() == [3, 1, 2] and not mailbox


async def test_a_reader_that_waits_is_woken_by_the_first() -> None:
    mailbox: Mailbox[str] = Mailbox()
    waiting = asyncio.ensure_future(mailbox.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    mailbox.put("a")
    mailbox.put("b")
    await waiting
    assert mailbox.take() == ["a", "b"]


async def test_a_reader_that_was_cancelled_may_come_again() -> None:
    mailbox: Mailbox[str] = Mailbox()
    waiting = asyncio.ensure_future(mailbox.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    mailbox.put("kept")
    await asyncio.gather(waiting, return_exceptions=True)
    await mailbox.wait()
    assert mailbox.take() == ["kept"]
