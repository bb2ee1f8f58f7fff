"""The hub and front-ends over a real socket, with replicas that we play."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.server_process import LIMIT_S
from tests.engine.builders import picture_prompt, text_prompt
from tests.engine.test_client import INFO
from tests.engine.test_group import Fixture, ended, token
from vl2.core.errors import CapacityError, ContextLengthExceeded, EngineError, InvalidRequest, NotReady
from vl2.core.stats import EngineStats
from vl2.core.types import SamplingParams, TokenEvent
from vl2.engine.hub import Hub
from vl2.engine.protocol import Abort, AskStats, Events, StatsReport
from vl2.engine.remote import RemoteGroup


async def until(condition) -> None:
    """Raises: TimeoutError."""

    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(wait(), LIMIT_S)


class Scene:
    """Two replicas, a hub, two front-ends."""

    def __init__(self, engines: Fixture, hub: Hub, frontends: list[RemoteGroup]) -> None:
        self.engines, self.hub, self.frontends = engines, hub, frontends

    def ask(self, frontend: int, request_id: str, prompt=None, **params) -> asyncio.Task[list[TokenEvent]]:
        remote = self.frontends[frontend]
        request = remote.admit(request_id, prompt or text_prompt(1, 2), SamplingParams(**params))

        async def collect() -> list[TokenEvent]:
            async with contextlib.aclosing(remote.generate(request)) as events:
                return [event async for event in events]

        return asyncio.ensure_future(collect())

    def replica_of(self, request_id: str):
        """The engine that has the request; None while it is on its way."""
        for idx in range(2):
            if request_id in self.engines.requests(idx):
                return self.engines.engine(idx)
        return None

    async def there(self, request_id: str):
        await until(lambda: self.replica_of(request_id) is not None)
        return self.replica_of(request_id)


async def shout(frontend: str, payload: bytes) -> bytes:
    if payload == b"no":
        raise InvalidRequest("not like this", param="voice")
    return frontend.encode() + b": " + payload.upper()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    engines = await Fixture().ready()
    hub = Hub(engines.group, tmp_path, {"shout": shout})
    hub.start()
    frontends = [RemoteGroup(tmp_path, name) for name in ("one", "two")]
    for remote in frontends:
        await remote.start()
    yield Scene(engines, hub, frontends)
    for remote in frontends:
        await remote.stop()
    await hub.stop()


async def test_front_ends_are_told_the_engines_state_and_its_changes(scene: Scene) -> None:
    assert all(remote.is_ready and remote.info == INFO for remote in scene.frontends)
    for idx in (0, 1):
        scene.engines.engine(idx).die("signal 9")
    await until(lambda: not any(remote.is_ready for remote in scene.frontends))
    with pytest.raises(NotReady):
        scene.frontends[0].admit("r", text_prompt(1), SamplingParams())


async def test_a_front_end_counts_once_it_takes_questions(tmp_path: Path) -> None:
    """Not once the engines are ready: what a client sent to it in between would be refused."""
    engines = Fixture()
    hub = Hub(engines.group, tmp_path, {"shout": shout})
    hub.start()
    remote = RemoteGroup(tmp_path, "one")
    starting = asyncio.ensure_future(remote.start())
    await remote.call("shout")  # now it has been heard
    ready = asyncio.ensure_future(engines.ready())
    seen = []
    while not hub.num_welcoming:
        seen.append((remote.is_ready, engines.group.is_ready))
        await asyncio.sleep(0)  # nothing can come over a socket between two of these
    assert (False, True) in seen, "there is such a time"
    assert remote.is_ready
    await asyncio.gather(starting, ready)
    hub.forget("one")
    assert hub.num_welcoming == 0
    await remote.stop()
    await hub.stop()


async def test_each_front_end_gets_its_own_events_and_whole_pictures_cross(scene: Scene) -> None:
    prompt = picture_prompt()
    asked = [scene.ask(0, "a", prompt), scene.ask(1, "b")]
    for request_id in "ab":
        engine = await scene.there(request_id)
        engine.report(Events([token(request_id)]))
        engine.report(ended(request_id))
    assert [[event.request_id for event in await task] for task in asked] == [["a", "a"], ["b", "b"]]
    [sent] = [
        c.request for c in scene.replica_of("a").sent if getattr(getattr(c, "request", None), "request_id", "") == "a"
    ]
    assert (sent.prompt.tiles == prompt.tiles).all() and sent.prompt.spans == prompt.spans


async def test_what_the_hub_refuses_is_raised_as_it_was(scene: Scene) -> None:
    with pytest.raises(ContextLengthExceeded) as caught:
        await scene.ask(0, "long", text_prompt(*range(INFO.max_context_tokens + 1)))
    assert caught.value.param == "messages"
    waiting = [scene.ask(idx % 2, f"r{idx}") for idx in range(8)]
    await until(lambda: len(scene.engines.requests(0)) + len(scene.engines.requests(1)) == 8)
    with pytest.raises(CapacityError, match="the most that are taken"):
        await scene.ask(0, "one too many")
    for task in waiting:
        task.cancel()


async def test_an_engine_that_dies_ends_the_answers_of_all_front_ends(scene: Scene) -> None:
    asked = [scene.ask(0, "a"), scene.ask(1, "b")]
    for request_id in "ab":
        engine = await scene.there(request_id)
        engine.report(Events([token(request_id)]))
    for idx in (0, 1):
        scene.engines.engine(idx).die("signal 9")
    for task in asked:
        with pytest.raises(EngineError, match="died"):
            await task


async def test_leaving_an_answer_aborts_it_and_so_does_a_front_end_that_is_gone(scene: Scene) -> None:
    left, lost = scene.ask(0, "left"), scene.ask(1, "lost")
    engines = {name: await scene.there(name) for name in ("left", "lost")}
    left.cancel()
    scene.hub.forget("two")
    for name, engine in engines.items():
        await until(lambda name=name, engine=engine: Abort(name) in engine.sent)
    lost.cancel()


async def test_a_choice_that_has_all_it_needs_is_closed_and_nothing_stays_open(scene: Scene) -> None:
    remote = scene.frontends[0]
    events = remote.generate(remote.admit("r", text_prompt(1), SamplingParams(n=2)))
    first = asyncio.ensure_future(anext(events))
    engine = await scene.there("r")
    engine.report(Events([token("r", choice_idx=0), token("r", choice_idx=1)]))
    assert (await first).choice_idx == 0
    remote.close_choice("r", 0)
    await until(lambda: Abort("r", 0) in engine.sent)
    assert (await anext(events)).choice_idx == 1
    remote.close_choice("r", 1)
    assert [event async for event in events] == []
    again = scene.ask(0, "r")  # the hub has let go of the first by the time it takes the next
    await until(lambda: scene.engines.requests(0).count("r") + scene.engines.requests(1).count("r") == 2)
    again.cancel()


async def test_services_answer_by_name_and_their_errors_come_back(scene: Scene) -> None:
    one, two = scene.frontends
    assert await asyncio.gather(one.call("shout", b"hi"), two.call("shout", b"ho")) == [b"one: HI", b"two: HO"]
    with pytest.raises(InvalidRequest, match="not like this") as caught:
        await one.call("shout", b"no")
    assert caught.value.param == "voice"
    with pytest.raises(EngineError, match="internal error"):
        await one.call("no such service")


async def test_a_front_end_reads_every_replica_s_counters(scene: Scene) -> None:
    asking = asyncio.ensure_future(scene.frontends[1].replica_stats())
    for idx in (0, 1):
        engine = scene.engines.engine(idx)
        await until(lambda engine=engine: isinstance(engine.sent[-1] if engine.sent else None, AskStats))
        engine.report(StatsReport(engine.sent[-1].query_id, EngineStats(num_running=idx + 1)))
    assert [replica.stats.num_running for replica in await asking] == [1, 2]


async def test_what_nobody_foresaw_is_an_error_too_and_the_hub_goes_on(scene: Scene, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as broken:
        broken.setattr(scene.engines.group, "admit", fail)
        with pytest.raises(EngineError, match="internal error"):
            await scene.ask(0, "a")
    asked = scene.ask(0, "b")
    (await scene.there("b")).report(ended("b"))
    assert len(await asked) == 1


async def test_a_choice_may_end_by_itself_while_a_front_end_closes_it(scene: Scene, monkeypatch) -> None:
    closed = asyncio.Event()

    def no_longer_there(request_id: str, choice_idx: int) -> None:
        closed.set()
        raise KeyError(request_id)

    first = scene.ask(0, "a")
    await scene.there("a")
    monkeypatch.setattr(scene.engines.group, "close_choice", no_longer_there)
    scene.frontends[0].close_choice("a", 0)
    await closed.wait()
    second = scene.ask(1, "b")
    (await scene.there("b")).report(ended("b"))
    assert len(await second) == 1, "the hub still listens"
    first.cancel()


async def test_what_is_no_message_hurts_nobody_else(scene: Scene) -> None:
    scene.frontends[0]._channel.send([b"\xc1 not msgpack"])
    assert await scene.frontends[0].call("shout", b"a") == b"one: A"
    assert await scene.frontends[1].call("shout", b"b") == b"two: B"


async def test_a_front_end_that_cannot_read_the_hub_ends_its_answers_and_gives_up(scene: Scene) -> None:
    answer = scene.ask(0, "r")
    await scene.there("r")
    scene.hub._channel.send([b"one", b"\xc1 not msgpack"])
    with pytest.raises(EngineError, match="cannot be read"):
        await answer
    assert "cannot be read" in await scene.frontends[0].wait_failed()
    assert scene.frontends[1].is_ready
