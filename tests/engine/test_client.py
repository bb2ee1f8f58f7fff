"""The client against an engine that we play: what it sends is recorded, reports and deaths are made by hand."""

import asyncio
import dataclasses
from collections.abc import Callable

import pytest

from tests.engine.builders import picture_prompt, text_prompt
from vl2.core.errors import CapacityError, ContextLengthExceeded, EngineError, InvalidRequest, NotReady, SetupError
from vl2.core.stats import EngineStats, ModelInfo
from vl2.core.types import FinishReason, Prompt, SamplingParams, TokenEvent
from vl2.engine.client import BEATS_PER_TIMEOUT, EngineClient
from vl2.engine.protocol import (
    Abort,
    Add,
    AskStats,
    Command,
    Events,
    Ping,
    Pong,
    Ready,
    Report,
    SetupFailed,
    StatsReport,
)

INFO = ModelInfo(
    max_context_tokens=20, max_prompt_tiles=10, vocab_size=100, device="cpu", dtype="float32", num_parameters=1,
    weights_bytes=4, num_pages=8, page_size_tokens=4,
    fingerprint="vl2-d-test",
)  # fmt: skip


class PlayedEngine:
    """A transport whose other end is the test."""

    def __init__(self) -> None:
        self.sent: list[Command] = []
        self.is_stopped = False
        self.killed_for: str | None = None

    async def start(self, on_report: Callable[[Report], None], on_death: Callable[[str], None]) -> None:
        self.report, self.die = on_report, on_death

    def send(self, command: Command) -> None:
        self.sent.append(command)

    def kill(self, reason: str) -> None:
        self.killed_for = reason

    async def stop(self) -> None:
        self.is_stopped = True


class Fixture:
    def __init__(self, max_open: int = 2, timeout_s: float | None = 8) -> None:
        self.lives: list[PlayedEngine] = []
        self.client = EngineClient(self._make, max_open=max_open, timeout_s=timeout_s)

    def _make(self) -> PlayedEngine:
        self.lives.append(PlayedEngine())
        return self.lives[-1]

    async def ready(self) -> "Fixture":
        start = asyncio.create_task(self.client.start())
        await settle()
        self.engine.report(Ready(INFO))
        await start
        return self

    @property
    def engine(self) -> PlayedEngine:
        return self.lives[-1]

    def open(self, prompt: Prompt | None = None, **params) -> "asyncio.Task[list[TokenEvent]]":
        request = self.client.admit("r", prompt or text_prompt(1, 2), SamplingParams(**params))

        async def collect() -> list[TokenEvent]:
            return [event async for event in self.client.generate(request)]

        return asyncio.create_task(collect())


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def token(choice_idx: int = 0, finish: FinishReason | None = None) -> TokenEvent:
    return TokenEvent("r", choice_idx, 7, finish_reason=finish)


async def test_events_reach_the_stream_until_every_choice_is_finished():
    f = await Fixture().ready()
    stream = f.open(n=2)
    await settle()
    f.engine.report(Events([token(0), token(1, FinishReason.STOP)]))
    f.engine.report(Events([token(0, FinishReason.LENGTH)]))
    assert len(await stream) == 3
    assert [type(command) for command in f.engine.sent] == [Add], "nothing is left to abort"


async def test_a_cancelled_stream_aborts_its_request():
    f = await Fixture().ready()
    stream = f.open()
    await settle()
    stream.cancel()
    await settle()
    assert f.engine.sent[-1] == Abort("r")


async def test_a_closed_choice_gets_no_more_events_and_the_others_go_on():
    f = await Fixture().ready()
    stream = f.open(n=2)
    await settle()
    f.client.close_choice("r", 0)
    f.engine.report(Events([token(0), token(1, FinishReason.STOP)]))
    assert await stream == [token(1, FinishReason.STOP)]
    assert f.engine.sent[-1] == Abort("r", 0)


async def test_when_the_engine_dies_open_streams_fail_and_a_new_one_is_started():
    f = await Fixture().ready()
    stream = f.open()
    await settle()
    f.engine.die("signal 9")
    with pytest.raises(EngineError, match="signal 9"):
        await stream
    assert not f.client.is_ready
    with pytest.raises(NotReady):
        f.open()
    await settle()
    assert len(f.lives) == 2 and f.lives[0].is_stopped
    f.engine.report(Ready(INFO))
    assert f.client.restarts_total == 1


async def test_an_engine_that_dies_at_every_start_is_given_up():
    f = Fixture()
    start = asyncio.create_task(f.client.start())
    for _ in range(3):
        await settle()
        f.engine.die("exit code 1")
    with pytest.raises(SetupError, match="3 times"):
        await start


async def test_an_engine_that_dies_at_every_restart_is_given_up_and_says_so(caplog):
    f = await Fixture().ready()
    failed = asyncio.create_task(f.client.wait_failed())
    for _ in range(4):
        assert not failed.done() and f.client.failure is None
        f.engine.die("exit code 1")
        await settle()
    await failed
    assert len(f.lives) == 4 and f.client.failure == "it died: exit code 1"
    with pytest.raises(NotReady, match="could not be started again"):
        f.open()
    assert [record.levelname for record in caplog.records][-1] == "CRITICAL"


async def test_a_restart_that_fails_is_tried_again():
    f = await Fixture().ready()
    f.engine.die("signal 9")
    await settle()
    f.engine.report(SetupFailed("not enough memory"))
    await settle()
    assert len(f.lives) == 3 and f.client.failure is None
    f.engine.report(Ready(INFO))
    assert f.client.is_ready


async def test_an_engine_that_answers_no_beat_is_killed_and_started_again():
    f = await Fixture().ready()
    stream = f.open()
    await settle()
    for _ in range(BEATS_PER_TIMEOUT):
        f.client.beat()
    assert f.client.is_ready and f.engine.sent[-1] == Ping()
    f.client.beat()
    assert not f.client.is_ready and f.engine.killed_for == "no answer for 8 s"
    with pytest.raises(EngineError, match="hung while it worked on this request"):
        await stream
    f.engine.die("no answer for 8 s")
    await settle()
    assert len(f.lives) == 2
    f.engine.report(Ready(INFO))
    assert f.client.is_ready


async def test_a_cpu_that_works_is_given_more_time():
    f = await Fixture(timeout_s=None).ready()
    assert f.client.silence_limit_s == 60
    f.open()
    await settle()
    assert f.client.silence_limit_s == 600
    f.engine.report(Ready(dataclasses.replace(INFO, device="NVIDIA H100")))
    assert f.client.silence_limit_s == 60


async def test_any_report_is_a_sign_of_life():
    f = await Fixture().ready()
    for report in (Pong(), Events([]), Pong()):
        for _ in range(BEATS_PER_TIMEOUT):
            f.client.beat()
        f.engine.report(report)
    assert f.client.is_ready


async def test_an_engine_that_cannot_be_killed_is_used_again_when_it_answers():
    f = await Fixture().ready()
    stream = f.open()
    await settle()
    for _ in range(BEATS_PER_TIMEOUT + 1):
        f.client.beat()
    assert f.engine.sent[-1] == Abort("r"), "nobody waits for that answer any more"
    with pytest.raises(EngineError):
        await stream
    f.engine.report(Pong())
    assert f.client.is_ready and len(f.lives) == 1


async def test_a_checkpoint_that_cannot_be_loaded_is_told_as_it_is():
    f = Fixture()
    start = asyncio.create_task(f.client.start())
    await settle()
    f.engine.report(SetupFailed("config.json is missing"))
    with pytest.raises(SetupError, match=r"config\.json is missing"):
        await start


async def test_what_can_never_fit_is_refused_with_the_numbers():
    f = await Fixture().ready()
    with pytest.raises(ContextLengthExceeded, match=r"20 tokens .* context holds 20"):
        f.open(text_prompt(*range(20)))
    with pytest.raises(ContextLengthExceeded, match=r"8 tokens \(5 of pictures\).*max_tokens is 13.*most .* is 12"):
        f.open(picture_prompt(b"cat"), max_tokens=13)


@pytest.mark.parametrize("token_id", [-1, INFO.vocab_size])
async def test_a_bias_on_what_is_no_token_is_refused(token_id):
    f = await Fixture().ready()
    with pytest.raises(InvalidRequest, match=f"token id {token_id}, but .* from 0 to 99") as refused:
        f.open(logit_bias={3: 1.0, token_id: 1.0})
    assert refused.value.param == "logit_bias"


async def test_a_full_queue_is_refused_for_now():
    f = await Fixture(max_open=1).ready()
    f.open()
    await settle()
    with pytest.raises(CapacityError):
        f.open()


async def test_absent_seed_and_max_tokens_are_settled_before_the_engine_sees_them():
    f = await Fixture().ready()
    request = f.client.admit("r", text_prompt(1, 2), SamplingParams())
    assert request.params.max_tokens == 18 and request.params.seed is not None


async def test_counters_are_asked_of_the_engine():
    f = await Fixture().ready()
    question = asyncio.create_task(f.client.stats())
    await settle()
    [ask] = f.engine.sent
    assert isinstance(ask, AskStats)
    f.engine.report(StatsReport(ask.query_id, EngineStats(generated_tokens_total=5)))
    assert (await question).generated_tokens_total == 5


async def test_a_question_for_counters_does_not_wait_for_an_engine_that_died():
    f = await Fixture().ready()
    question = asyncio.create_task(f.client.stats())
    await settle()
    f.engine.die("signal 9")
    await settle()
    assert question.done() and (await question).restarts_total == 1


async def test_counters_that_do_not_come_in_time_are_unknown_not_zero(monkeypatch):
    monkeypatch.setattr("vl2.engine.client.STATS_TIMEOUT_S", 0)
    f = await Fixture().ready()
    assert await f.client.stats() is None
