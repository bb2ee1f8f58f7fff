"""Stored answers, times in the reply, deadlines."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from fakes import FakeModel, answer
from server.bodies import Connect, chat, image_part, text_part
from server.test_chat import events
from server.test_tenants import bearer, line
from vl2.core.types import Timing, Usage

URL = "/v1/chat/completions"
TIMING = Timing(queue_s=0.5, vision_s=0.25, prefill_s=0.125, decode_s=1.0)
USAGE = Usage(10, 4, cached_tokens=2, timing=TIMING)
LOOK = [image_part(), text_part("What is it?")]


def timed() -> FakeModel:
    return FakeModel(lambda messages, params: answer("A red square.", n=params.n, usage=USAGE))


async def ask(client: httpx.AsyncClient, body: Any, **headers: str) -> httpx.Response:
    return await client.post(URL, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


# ---- results --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_the_same_request_gets_the_stored_answer_and_is_told_so(connect: Connect, stream: bool) -> None:
    model = timed()
    client = connect(model, result_cache_bytes=10**6)
    first = await ask(client, chat(LOOK, logprobs=True, n=2))
    again = await ask(client, chat(LOOK, logprobs=True, n=2, stream=stream, **_usage(stream)))
    assert len(model.asked) == 1
    assert "x-vl2-result-cache" not in first.headers and again.headers["x-vl2-result-cache"] == "hit"
    if stream:
        chunks = events(again)
        texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]]
        assert "".join(texts) == 2 * "A red square." and chunks[-1]["usage"]["from_result_cache"]
    else:
        body = again.json()
        assert body["choices"] == first.json()["choices"] and body["id"] != first.json()["id"]
        assert body["usage"] == first.json()["usage"] | {"from_result_cache": True}


def _usage(stream: bool) -> dict[str, Any]:
    return {"stream_options": {"include_usage": True}} if stream else {}


@pytest.mark.parametrize(
    "other",
    [
        chat(LOOK, max_tokens=5),
        chat([*LOOK, text_part("!")]),
        chat([text_part("What is it?")]),
        chat([{"type": "image_url", "image_url": LOOK[0]["image_url"] | {"detail": "low"}}, LOOK[1]]),
        chat(LOOK, cache_salt="x"),
        chat(LOOK, seed=1),
    ],
)
async def test_any_difference_is_another_request(connect: Connect, other: Any) -> None:
    model = timed()
    client = connect(model, result_cache_bytes=10**6)
    for body in (chat(LOOK), other):
        assert "x-vl2-result-cache" not in (await ask(client, body)).headers
    assert len(model.asked) == 2


async def test_what_may_be_answered_differently_is_not_stored_nor_what_is_not_wanted(connect: Connect) -> None:
    model = timed()
    client = connect(model, result_cache_bytes=10**6)
    for _ in range(2):
        await ask(client, chat(temperature=1))
        await ask(client, chat(), Cache_Control="no-store")
    assert len(model.asked) == 4
    off = connect(model)
    for _ in range(2):
        await ask(off, chat())
    assert len(model.asked) == 6


async def test_tenants_do_not_meet_each_other_s_answers(connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(line("alice", "a") + line("bob", "b"))
    model = timed()
    client = connect(model, keys_file=str(tmp_path / "keys"), result_cache_bytes=10**6)
    hits = [
        "x-vl2-result-cache" in (await client.post(URL, json=chat(), headers=bearer(key))).headers for key in "abab"
    ]
    assert hits == [False, False, True, True]


async def test_the_oldest_answers_make_room(connect: Connect) -> None:
    model = timed()
    client = connect(model, result_cache_bytes=5000)
    for text in "aba":
        await ask(client, chat(text))
    assert len(model.asked) == 2
    for text in ("c", "d", "b"):
        await ask(client, chat(text))
    assert len(model.asked) == 5


# ---- times ----------------------------------------------------------------------------------------------------------


async def test_times_are_told_to_who_asks(connect: Connect) -> None:
    client = connect(timed())
    assert "timing" not in (await ask(client, chat())).json()["usage"]
    told = (await ask(client, chat(), X_VL2_Timing="1")).json()["usage"]["timing"]
    assert told == dataclasses.asdict(TIMING)
    response = await client.post("/v1/responses", json={"input": "x"}, headers={"X-VL2-Timing": "true"})
    assert response.json()["usage"]["timing"] == told


async def test_tenants_that_share_caches_are_told_neither_times_nor_hits(connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(line("alice", "a") + line("bob", "b"))
    for shared, cached in {True: 0, False: 2}.items():
        client = connect(timed(), keys_file=str(tmp_path / "keys"), shared_cache=shared)
        usage = (await client.post(URL, json=chat(), headers=bearer("a") | {"X-VL2-Timing": "1"})).json()["usage"]
        assert (usage["prompt_tokens_details"]["cached_tokens"], "timing" in usage) == (cached, not shared)


# ---- deadlines ------------------------------------------------------------------------------------------------------


class Silence(asyncio.Event):
    """A step of a model's script that never ends; at `begins` it is reached."""

    def __init__(self) -> None:
        super().__init__()
        self.begins = asyncio.Event()

    async def wait(self) -> Literal[True]:
        self.begins.set()
        return await super().wait()


async def answered_late(asking: Coroutine[Any, Any, httpx.Response], silence: Silence) -> httpx.Response:
    """The model falls silent, and an hour goes by."""
    task, loop = asyncio.ensure_future(asking), asyncio.get_running_loop()
    await silence.begins.wait()
    now_s = loop.time
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "time", lambda: now_s() + 3600)
        return await task


async def test_a_deadline_ends_a_silent_answer_with_504(connect: Connect) -> None:
    silence = Silence()
    model = FakeModel([silence])
    response = await answered_late(ask(connect(model), chat(), X_Request_Timeout="600"), silence)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert model.num_cancelled == 1
    assert 0 < (model.options[0].deadline_s or 0) <= 600


async def test_and_a_stream_with_an_error_event(connect: Connect) -> None:
    silence = Silence()
    model = FakeModel([*answer("A red")[:1], silence])
    asking = ask(connect(model), chat(stream=True), X_Request_Timeout="600")
    chunks = events(await answered_late(asking, silence))
    assert chunks[-1]["error"]["code"] == "deadline_exceeded"
    assert model.num_cancelled == 1


@pytest.mark.parametrize("sent", ["0", "-1", "soon", "nan", "inf", "1e9"])
async def test_a_deadline_that_is_none_is_refused(connect: Connect, sent: str) -> None:
    response = await ask(connect(), chat(), X_Request_Timeout=sent)
    assert response.status_code == 400 and "X-Request-Timeout" in response.json()["error"]["message"]
