"""The page as a newcomer meets it, with the model that ships; and the pictures of it that the README shows.

`make screenshots` (VL2_SCREENSHOTS=FOLDER) keeps them; else they go to a temporary folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from page.serving import Open
from page.user import User
from tests.boxes import overlap
from tests.e2e.server_process import serving

SAMPLE = {  # what web/sample.webp shows, in thousandths of its sides
    "en": {
        "the green hexagon": (43, 221, 187, 423),
        "the text": (180, 591, 376, 662),
        "the snail": (421, 40, 580, 275),
        "the telescope": (528, 378, 764, 799),
    },
    "zh": {"绿色六边形", "文字", "蜗牛", "望远镜"},
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving("nano", "--device", "cpu") as server:
        yield server.url


@pytest.fixture
def keep(tmp_path: Path) -> object:
    """`keep(user, name)`: a screenshot as WebP, three quarters of a megapixel or so."""
    folder = Path(os.environ.get("VL2_SCREENSHOTS") or tmp_path)

    def shoot(user: User, name: str) -> None:
        file = tmp_path / f"{name}.png"
        user.page.screenshot(path=file, animations="disabled", caret="hide")
        image = Image.open(file).convert("RGB")
        assert len(image.getcolors(2**24) or ()) > 500  # something is on it
        image.save(folder / f"page-{name}.webp", quality=88, method=6)
        assert (folder / f"page-{name}.webp").stat().st_size < 200_000

    return shoot


def ask_about_the_sample(user: User, task: str) -> None:
    user.page.locator("#sample").click()
    user.wait_for_pictures(1)
    user.button(task).click()
    user.page.locator("#send").click()
    user.wait_for_answer()
    user.wait_for_boxes()


def test_the_sample_is_described_with_boxes(url: str, open_page: Open, keep) -> None:
    user = open_page(url, viewport={"width": 1060, "height": 860}, device_scale_factor=1.5)
    user.page.get_by_text("knows drawn scenes, not photographs").wait_for()
    keep(user, "start")
    ask_about_the_sample(user, "Boxes")
    user.button("Again").click()
    user.page.get_by_text("from the cache").wait_for()  # the picture is known by now
    user.wait_for_boxes()
    keep(user, "boxes")
    told = user.downloaded_json("Save the boxes as JSON")
    size = told["picture"]["width"], told["picture"]["height"]
    found = {
        thing["label"]: [1000 * v / side for v, side in zip(thing["boxes"][0], size * 2, strict=True)]
        for thing in told["objects"]
    }
    assert set(found) == set(SAMPLE["en"])
    for label, box in SAMPLE["en"].items():
        assert overlap(found[label], box) > 0.6, label
    user.ask_and_wait("What does the text say?")
    assert user.said().isdecimal()


def test_on_a_phone_in_chinese_in_the_dark(url: str, open_page: Open, keep) -> None:
    phone = {
        "viewport": {"width": 400, "height": 800},
        "is_mobile": True,
        "has_touch": True,
        "device_scale_factor": 1.5,
    }
    user = open_page(url, locale="zh-CN", color_scheme="dark", **phone)
    ask_about_the_sample(user, "方框")
    assert {word.inner_text() for word in user.page.locator(".answer .object").all()} == SAMPLE["zh"]
    keep(user, "phone")


def test_the_status_after_some_questions(url: str, open_page: Open, keep) -> None:
    asking = open_page(url)
    ask_about_the_sample(asking, "Boxes")
    for question in ("How many snails are there?", "What does the text say?", "What is in the picture?"):
        asking.ask_and_wait(question)
    user = open_page(url, path="/status", viewport={"width": 1120, "height": 800}, device_scale_factor=1.5)
    user.page.locator(".spark polyline").first.wait_for()
    user.page.get_by_text("tokens/s").wait_for()
    keep(user, "status")
