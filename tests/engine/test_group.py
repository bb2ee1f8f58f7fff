"""The group against replicas that we play, as in test_client.py."""

import asyncio
import contextlib

import pytest

from tests.engine.builders import picture_prompt, text_prompt
from tests.engine.test_client import INFO, PlayedEngine, settle
from vl2.core.config import EngineConfig
from vl2.core.errors import CapacityError, EngineError, InvalidRequest, NotReady, SetupError
from vl2.core.stats import EngineStats
from vl2.core.types import FinishReason, Prompt, SamplingParams, TokenEvent
from vl2.engine.group import EngineGroup
from vl2.engine.protocol import Abort, Add, AskStats, Events, LoadProgress, Ready, SetupFailed, StatsReport


class Fixture:
    def __init__(self, replicas: int = 2, max_open: int = 4, on_progress=None) -> None:
        self.lives: list[list[PlayedEngine]] = [[] for _ in range(replicas)]
        config = EngineConfig(replicas=replicas, max_queue=max_open - 1, max_sequences=1)
        self.group = EngineGroup(self._make, config, on_progress=on_progress)

    def _make(self, config: EngineConfig) -> PlayedEngine:
        self.lives[config.replica_idx].append(PlayedEngine())
        return self.lives[config.replica_idx][-1]

    async def ready(self) -> "Fixture":
        start = asyncio.create_task(self.group.start())
        await settle()
        for idx in range(len(self.lives)):
            self.engine(idx).report(Ready(INFO))
        await start
        return self

    def engine(self, idx: int) -> PlayedEngine:
        return self.lives[idx][-1]

    def open(self, request_id: str, prompt: Prompt | None = None, **params) -> "asyncio.Task[list[TokenEvent]]":
        """Its events, as they come."""
        admitted = self.group.admit(request_id, prompt or text_prompt(1, 2), SamplingParams(**params))

        async def collect() -> list[TokenEvent]:
            return [event async for event in self.group.generate(admitted)]

        return asyncio.create_task(collect())

    async def opened(self, request_id: str, prompt: Prompt | None = None, **params) -> "asyncio.Task[list[TokenEvent]]":
        stream = self.open(request_id, prompt, **params)
        await settle()
        return stream

    def requests(self, idx: int) -> list[str]:
        """Ids that the present life of a replica was given."""
        return [command.request.request_id for command in self.engine(idx).sent if isinstance(command, Add)]


def token(request_id: str, finish: FinishReason | None = None, choice_idx: int = 0) -> TokenEvent:
    return TokenEvent(request_id, choice_idx, 7, finish_reason=finish)


def ended(request_id: str) -> Events:
    return Events([token(request_id, FinishReason.STOP)])


async def test_each_replica_knows_which_one_it_is_and_all_have_loaded_when_start_returns():
    f = Fixture(replicas=3)
    start = asyncio.create_task(f.group.start())
    await settle()
    assert [len(lives) for lives in f.lives] == [1, 1, 1]
    f.engine(0).report(Ready(INFO))
    f.engine(2).report(Ready(INFO))
    await settle()
    assert not start.done() and not f.group.is_ready
    f.engine(1).report(Ready(INFO))
    await start
    assert f.group.is_ready and f.group.info == INFO


async def test_progress_is_that_of_all_together():
    told = []
    f = Fixture(on_progress=lambda *progress: told.append(progress))
    start = asyncio.create_task(f.group.start())
    await settle()
    f.engine(0).report(LoadProgress(5, 10))
    f.engine(1).report(LoadProgress(10, 10))
    assert told == [(5, 20), (15, 20)]
    start.cancel()


async def test_a_replica_that_cannot_start_is_told_as_it_is():
    f = Fixture()
    start = asyncio.create_task(f.group.start())
    await settle()
    f.engine(0).report(Ready(INFO))
    f.engine(1).report(SetupFailed("--replicas 2 needs as many GPUs"))
    with pytest.raises(SetupError, match="needs as many GPUs"):
        await start


async def test_open_work_is_shared_and_a_picture_stays_where_it_is():
    f = await Fixture().ready()
    first = await f.opened("a", picture_prompt(b"cat"))
    second = await f.opened("b", picture_prompt(b"dog"))
    for idx, request_id in enumerate("ab"):
        f.engine(idx).report(ended(request_id))
    await asyncio.gather(first, second)
    await f.opened("dog again", picture_prompt(b"dog", after=(3,)))
    await f.opened("cat again", picture_prompt(b"cat", after=(3,)))
    assert f.requests(0) == ["a", "cat again"] and f.requests(1) == ["b", "dog again"]


async def test_a_full_replica_is_passed_over_until_all_are_full():
    f = await Fixture(max_open=1).ready()
    cat = picture_prompt(b"cat")
    await f.opened("a", cat)
    f.engine(0).report(Events([token("a")]))  # computed: the picture alone would keep the next one here
    await f.opened("b", cat)
    assert f.requests(1) == ["b"]
    with pytest.raises(CapacityError):
        f.open("c")


async def test_an_id_that_runs_at_any_replica_is_refused():
    f = await Fixture().ready()
    await f.opened("a")
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="already running"):
            f.open("a")


async def test_closing_and_cancelling_reach_the_replica_that_has_the_request():
    f = await Fixture().ready()
    await f.opened("a")
    stream = await f.opened("b", n=2)
    f.group.close_choice("b", 0)
    stream.cancel()
    await settle()
    assert f.engine(1).sent[1:] == [Abort("b", 0), Abort("b")] and len(f.engine(0).sent) == 1


async def test_while_a_replica_is_dead_the_other_takes_everything_and_later_it_is_put_back():
    f = await Fixture().ready()
    f.engine(0).die("signal 9")
    assert f.group.is_ready
    await f.opened("a")
    await f.opened("b")
    assert f.requests(1) == ["a", "b"]
    f.engine(0).report(Ready(INFO))
    await f.opened("c")
    assert len(f.lives[0]) == 2 and f.requests(0) == ["c"]


async def test_nothing_is_ready_when_all_are_dead():
    f = await Fixture().ready()
    for idx in (0, 1):
        f.engine(idx).die("signal 9")
    assert not f.group.is_ready
    with pytest.raises(NotReady):
        f.open("a")


async def test_all_is_lost_only_when_every_replica_is_given_up():
    f = await Fixture().ready()
    failed = asyncio.create_task(f.group.wait_failed())
    for idx in (0, 1):
        assert f.group.failure is None and not failed.done()
        for _ in range(4):
            f.engine(idx).die("signal 9")
            await settle()
        with pytest.raises(NotReady, match="again; restart the server") if idx else contextlib.nullcontext():
            f.open(str(idx))
    assert await failed == f.group.failure == "it died: signal 9"


async def test_what_a_dead_replica_had_is_forgotten():
    f = await Fixture().ready()
    cat = picture_prompt(b"cat")
    stream = await f.opened("a", cat)
    f.engine(0).report(ended("a"))
    await stream
    f.engine(0).die("signal 9")
    await settle()
    f.engine(0).report(Ready(INFO))
    await f.opened("b", cat)
    assert f.requests(1) == ["b"], "the one that was idle for longest: nobody has the picture"


async def test_a_request_without_a_token_moves_from_a_dead_replica_and_draws_the_same():
    f = await Fixture().ready()
    stream = await f.opened("a", temperature=1.0)
    [before] = f.engine(0).sent
    f.engine(0).die("signal 9")
    await settle()
    [after] = f.engine(1).sent
    assert after == before, "seed included"
    f.group.close_choice("a", 0)
    f.engine(1).report(ended("a"))
    assert await stream == []


async def test_an_answer_that_has_begun_ends_with_the_error():
    f = await Fixture().ready()
    stream = await f.opened("a")
    f.engine(0).report(Events([token("a")]))
    await settle()
    f.engine(0).die("signal 9")
    with pytest.raises(EngineError, match="signal 9"):
        await stream
    assert f.requests(1) == []


async def test_a_request_moves_only_once():
    f = await Fixture(replicas=3).ready()
    stream = await f.opened("a")
    for idx in (0, 1):
        assert f.requests(idx) == ["a"]
        f.engine(idx).die(f"signal {idx}")
        await settle()
    with pytest.raises(EngineError, match="signal 1"):
        await stream
    assert f.requests(2) == [] and f.group.is_ready


async def test_a_request_that_no_other_replica_can_take_ends_with_the_error():
    f = await Fixture(max_open=1).ready()
    streams = [await f.opened("a"), await f.opened("b")]
    f.engine(0).die("signal 9")
    with pytest.raises(EngineError, match="signal 9"):
        await streams[0]
    f.engine(1).report(ended("b"))
    assert len(await streams[1]) == 1


async def test_a_failure_at_the_request_itself_is_not_tried_again():
    f = await Fixture().ready()
    stream = await f.opened("a")
    f.engine(0).report(Events([TokenEvent("a", error="the engine failed at this request")]))
    with pytest.raises(EngineError, match="failed at this request"):
        await stream
    assert f.requests(1) == []


async def test_stopping_moves_nothing():
    f = await Fixture().ready()
    stream = await f.opened("a")
    await f.group.stop()
    with pytest.raises(EngineError, match="shutting down"):
        await stream
    assert f.requests(1) == [] and not f.group.is_ready


async def test_counters_are_told_by_replica_and_in_sum():
    f = await Fixture().ready()

    async def ask(question):
        asked = asyncio.create_task(question)
        await settle()
        for idx in (0, 1):
            ask_stats = f.engine(idx).sent[-1]
            assert isinstance(ask_stats, AskStats)
            f.engine(idx).report(
                StatsReport(ask_stats.query_id, EngineStats(generated_tokens_total=idx + 5, num_running=idx))
            )
        return await asked

    assert [replica.stats.generated_tokens_total for replica in await ask(f.group.replica_stats())] == [5, 6]
    assert await ask(f.group.stats()) == EngineStats(generated_tokens_total=11, num_running=1)
    f.engine(0).die("signal 9")
    await settle()
    question = asyncio.create_task(f.group.replica_stats())
    await settle()
    f.engine(1).report(StatsReport(f.engine(1).sent[-1].query_id, EngineStats(generated_tokens_total=7)))
    dead, alive = await question
    assert (dead.is_ready, dead.stats) == (False, EngineStats(restarts_total=1))
    assert alive.is_ready and alive.stats.generated_tokens_total == 7


async def test_a_replica_that_does_not_answer_is_left_out_of_the_sum(monkeypatch):
    monkeypatch.setattr("vl2.engine.client.STATS_TIMEOUT_S", 0)
    f = await Fixture().ready()
    assert [(replica.is_ready, replica.stats) for replica in await f.group.replica_stats()] == [(True, None)] * 2
    assert await f.group.stats() == EngineStats()


async def test_a_prompt_is_not_hashed_where_there_is_one_replica(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vl2.engine.group.footprint", lambda *_: pytest.fail("there is nothing to choose"))
    f = await Fixture(replicas=1).ready()
    stream = await f.opened("a")
    f.engine(0).report(ended("a"))
    assert len(await stream) == 1
