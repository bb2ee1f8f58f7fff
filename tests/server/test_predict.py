"""POST /predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import FakeModel
from server.bodies import PNG, PNG_URL, Connect
from vl2.core.types import ImagePart, Message
from vl2.server.fetch import PictureFetcher


async def public(host: str, port: int) -> list[str]:
    return ["93.184.216.34"]


@pytest.mark.parametrize("image", [PNG_URL, PNG_URL.partition(",")[2], "https://pictures.example/a.png"])
async def test_a_picture_and_a_question_give_an_answer(connect: Connect, image: str) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=httpx.ByteStream(PNG))

    model = FakeModel()
    fetcher = PictureFetcher(resolve=public, transport=httpx.MockTransport(handle))
    response = await connect(model, fetcher=fetcher).post("/predict", json={"prompt": "What?", "image": image})
    assert response.json() == {"response": "A red square."}
    assert model.asked[0][0] == [Message.from_parts("user", [ImagePart(PNG), "What?"])]


@pytest.mark.parametrize("is_absolute", [False, True])
async def test_image_path_is_below_the_allowed_folder(connect: Connect, tmp_path: Path, is_absolute: bool) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    model = FakeModel()
    client = connect(model, allow_dir=str(tmp_path))
    path = str(tmp_path / "a.png") if is_absolute else "a.png"
    response = await client.post("/predict", json={"prompt": "What?", "image_path": path, "max_tokens": 5})
    assert response.status_code == 200
    assert model.asked[0][0][0].images == (PNG,)
    assert model.asked[0][1].max_tokens == 5


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": "What?"}, "image", "either image or image_path"),
        ({"prompt": "What?", "image": "AAAA", "image_path": "a"}, "image", "either image or image_path"),
        ({"image": "AAAA"}, "prompt", "is missing"),
        ({"prompt": "What?", "image": "not @"}, "image", "'@' at position 4"),
        ({"prompt": "What?", "image": "http://10.0.0.1/"}, "image", "not on the public internet"),
        ({"prompt": "What?", "image_path": "/etc/passwd"}, "image_path", "below the server's picture folder"),
        ({"prompt": "What?", "image_path": "../a.png"}, "image_path", "below the server's picture folder"),
        ({"prompt": "What?", "image": "AAAA", "max_tokens": 0}, "max_tokens", "at least 1"),
        ({"prompt": "What?", "image": "AAAA", "tokens": 1}, "tokens", "not a field"),
    ],
)
async def test_bad_input_is_named(
    connect: Connect, tmp_path: Path, body: dict[str, Any], param: str, words: str
) -> None:
    response = await connect(allow_dir=str(tmp_path)).post("/predict", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert words in response.json()["error"]["message"]


async def test_predict_waits_for_no_model(connect: Connect) -> None:
    response = await connect(FakeModel(is_ready=False)).post("/predict", json={"prompt": "What?", "image": "AAAA"})
    assert response.status_code == 503
