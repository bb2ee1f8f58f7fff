"""POST /v1/pictures: what the model sees, for who cannot decode it."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakes import FakeModel
from server.bodies import PNG_URL, Connect
from vl2 import LLM

URL = "/v1/pictures"


def data_url(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def decoded(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


async def test_a_picture_comes_back_as_png(connect: Connect) -> None:
    (picture,) = (await connect().post(URL, json={"url": PNG_URL})).json()["data"]
    assert (picture["width"], picture["height"], decoded(picture["url"]).size) == (1, 1, (1, 1))


async def test_pages_of_a_pdf_come_back_in_order(connect: Connect) -> None:
    url = "data:application/pdf;base64," + base64.b64encode(b"%PDF-1.7").decode()
    pages = (await connect().post(URL, json={"url": url, "pages": "3,1"})).json()["data"]
    assert [decoded(page["url"]).getpixel((0, 0)) for page in pages] == [(3,) * 3, (1,) * 3]


async def test_a_large_picture_comes_back_smaller(connect: Connect) -> None:
    url = data_url(Image.new("RGB", (4800, 1200)), "PNG")
    (picture,) = (await connect().post(URL, json={"url": url})).json()["data"]
    assert (picture["width"], picture["height"]) == (2400, 600)


async def test_what_is_fetched_obeys_the_rules_of_fetching(connect: Connect) -> None:
    answer = await connect().post(URL, json={"url": "http://127.0.0.1/x.png"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "url")


async def test_it_needs_a_key_and_a_model(connect: Connect) -> None:
    assert (await connect(api_key=["k"]).post(URL, json={"url": PNG_URL})).status_code == 401
    assert (await connect(FakeModel(is_ready=False)).post(URL, json={"url": PNG_URL})).status_code == 503


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


async def test_sixteen_bits_and_tiff_are_shown_as_the_model_sees_them(llm: LLM, tmp_path: Path) -> None:
    """12 bits of grey in a PNG of 16: white is 4095, which a browser would show as nearly black."""
    grey = Image.fromarray(np.array([[0, 4095], [2048, 0]], np.uint16))
    file = tmp_path / "xray.png"
    grey.save(file)
    assert (await llm.open_picture(file.read_bytes())).getpixel((1, 0)) == (255, 255, 255)
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (10, 20, 30)).save(buffer, "TIFF")
    assert (await llm.open_picture(buffer.getvalue())).getpixel((2, 1)) == (10, 20, 30)
