"""What a request would cost."""

from __future__ import annotations

import asyncio

import pytest

from fakes import FakeModel
from server.bodies import Connect, chat, image_part, text_part
from vl2.server.fetch import PictureFetcher


async def test_tokenize_gives_the_tokens_and_which_are_pictures(connect: Connect) -> None:
    body = {"messages": chat([image_part(), text_part("two words")])["messages"]}
    told = (await connect().post("/v1/tokenize", json=body)).json()
    assert told == {
        "tokens": [0, *[9] * 10, 20, 21],
        "count": 13,
        "text_tokens": 3,
        "image_tokens": 10,
        "max_model_len": 4096,
    }
    assert (await connect().post("/v1/tokenize", json={"prompt": "one two three"})).json()["count"] == 4


@pytest.mark.parametrize("body", [{}, {"prompt": "x", "messages": chat()["messages"]}])
async def test_it_wants_one_of_two(connect: Connect, body: object) -> None:
    assert (await connect().post("/v1/tokenize", json=body)).status_code == 400


async def test_an_estimate_says_whether_it_fits_and_asks_no_model(connect: Connect) -> None:
    model = FakeModel()
    client = connect(model)
    body = chat([image_part(), text_part("x")], max_tokens=4085)
    told = (await client.post("/v1/estimate", json=body)).json()
    assert (told["count"], told["max_answer_tokens"], told["fits"]) == (12, 4084, False)
    assert told["pictures"] == [{"width": 64, "height": 32, "tiles": 2, "tokens": 10}]
    assert (await client.post("/v1/estimate", json=body | {"max_tokens": 4084})).json()["fits"] is True
    assert not model.asked


async def test_counting_has_a_deadline_too(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(url: str) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    fetcher = PictureFetcher()
    monkeypatch.setattr(fetcher, "_download", slow)
    picture = image_part("http://pictures.example/a.png")
    bodies = {
        "/v1/estimate": chat([picture]),
        "/v1/pictures": {"url": "http://pictures.example/a.png"},
        "/predict": {"prompt": "x", "image": "http://pictures.example/a.png"},
    }
    client = connect(fetcher=fetcher)
    for path, body in bodies.items():
        response = await client.post(path, json=body, headers={"X-Request-Timeout": "0.001"})
        assert (path, response.status_code) == (path, 504)


async def test_its_times_come_from_recent_answers(connect: Connect) -> None:
    client = connect()
    before = (await client.post("/v1/estimate", json=chat())).json()
    assert (before["expected_total_s"], before["from_recent_answers"]) == (None, 0)
    await client.post("/v1/chat/completions", json=chat())
    short = (await client.post("/v1/estimate", json=chat(max_tokens=10))).json()
    long = (await client.post("/v1/estimate", json=chat(max_tokens=100))).json()
    assert 0 < short["expected_first_token_s"] <= short["expected_total_s"] < long["expected_total_s"]
    assert long["from_recent_answers"] == 1
