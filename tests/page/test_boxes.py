"""Boxes on the picture and the words they belong to; regions; files of them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from fakes import FakeModel
from page.models import BOXES, grounded
from page.serving import Open, Serve
from page.user import User

ORANGE, BLUE = (0xC2, 0x41, 0x0C), (0x1D, 0x64, 0xC8)
"""The first two colours of web/figure.js."""


@pytest.fixture
def user(serve: Serve, open_page: Open, scene: Path) -> User:
    """Who has asked where things are."""
    user = open_page(serve(FakeModel(grounded())))
    user.drop(scene)
    user.ask_and_wait("Where?")
    user.wait_for_boxes()
    return user


def is_near(pixel: list[int], colour: tuple[int, int, int]) -> bool:
    return all(abs(a - b) <= 24 for a, b in zip(pixel, colour, strict=False)) and pixel[3] > 240


def test_boxes_lie_where_the_model_pointed(user: User) -> None:
    """The four sides of the red box are drawn in its colour; 3 % inside and outside of it nothing is."""
    left, top, right, bottom = (value / 999 for value in BOXES["the red box"][0])
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    for x, y in [(left, middle_y), (right, middle_y), (middle_x + 0.05, bottom), (right - 0.03, top)]:
        assert is_near(user.answer_pixel(x, y), ORANGE), (x, y)
    for x, y in [(left - 0.03, middle_y), (right + 0.03, middle_y), (middle_x, bottom + 0.06)]:
        assert user.answer_pixel(x, y)[3] == 0, (x, y)
    assert 0 < user.answer_pixel(middle_x, middle_y)[3] < 80  # a tint within


def test_every_box_of_an_object_is_drawn_in_its_colour(user: User) -> None:
    for x1, y1, x2, y2 in BOXES["the corners"]:
        assert is_near(user.answer_pixel((x1 + x2) / 2 / 999, min(y2, 990) / 999), BLUE) or is_near(
            user.answer_pixel((x1 + x2) / 2 / 999, y1 / 999), BLUE
        )


def test_a_word_lights_its_box_and_a_box_its_word(user: User) -> None:
    inside = (0.4, 0.45)
    words = user.page.locator(".answer .object")
    words.nth(0).hover()
    assert user.answer_pixel(*inside)[3] == 0  # its box is clear …
    assert user.answer_pixel(0.75, 0.45)[3] > 100  # … and all else is dimmed
    words.nth(1).hover()
    assert user.answer_pixel(*inside)[3] > 100
    size = user.page.locator(".answer canvas").bounding_box()
    user.page.mouse.move(size["x"] + 0.4 * size["width"], size["y"] + 0.45 * size["height"])
    assert "lit" in words.nth(0).get_attribute("class")
    assert "lit" not in words.nth(1).get_attribute("class")
    user.page.mouse.move(5, 5)
    assert "lit" not in words.nth(0).get_attribute("class")


def test_with_the_keyboard_a_word_tells_and_shows_its_boxes(user: User) -> None:
    word = user.page.locator(".answer .object").nth(1)
    word.focus()
    assert user.answer_pixel(0.75, 0.45)[3] > 100
    assert word.get_attribute("aria-label") == "the corners: 0, 0 to 20, 20; 180, 80 to 200, 100"


def test_word_and_box_have_the_same_colour(user: User) -> None:
    border = "node => getComputedStyle(node).borderBottomColor"
    words = user.page.locator(".answer .object")
    assert words.nth(0).evaluate(border) == f"rgb{ORANGE}"
    assert words.nth(1).evaluate(border) == f"rgb{BLUE}"


def test_the_picture_with_its_boxes_is_saved_as_png(user: User) -> None:
    name, data = user.download("Save the picture with its boxes as PNG")
    assert name == "scene-boxes.png"
    image = Image.open(io.BytesIO(data)).convert("RGB")
    assert image.size == (200, 100)
    assert is_near([*image.getpixel((120, 45)), 255], ORANGE)
    assert image.getpixel((150, 40)) == (255, 255, 255)


def test_the_boxes_are_saved_as_json(user: User) -> None:
    told = user.downloaded_json("Save the boxes as JSON")
    assert told["picture"] == {"name": "scene.png", "width": 200, "height": 100}
    assert [(found["label"], found["boxes"]) for found in told["objects"]] == [
        ("the red box", [[40, 20, 120, 70]]),
        ("the corners", [[0, 0, 20, 20], [180, 80, 200, 100]]),
    ]


# ---- regions --------------------------------------------------------------------------------------------------------


def drag(user: User, frame: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Over the picture, from and to shares of its sides."""
    area = user.page.locator(frame).last.bounding_box()
    points = [(area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in (start, end)]
    user.page.mouse.move(*points[0])
    user.page.mouse.down()
    user.page.mouse.move(*points[1], steps=4)
    user.page.mouse.up()


def last_picture(model: FakeModel) -> Image.Image:
    return Image.open(io.BytesIO(model.asked[-1][0][-1].images[-1])).convert("RGB")


def test_a_region_that_is_dragged_out_is_asked_about(serve: Serve, open_page: Open, scene: Path) -> None:
    model = FakeModel()
    user = open_page(serve(model))
    user.drop(scene)
    drag(user, "#preview .frame", (0.2, 0.2), (0.6, 0.7))
    user.page.locator("#preview").get_by_role("button", name="Ask about this part").click()
    user.wait_for_pictures(2)
    user.ask_and_wait("What is this?")
    crop = last_picture(model)
    assert abs(crop.width - 80) <= 2 and abs(crop.height - 50) <= 2
    assert {crop.getpixel(at) for at in ((3, 3), (70, 40))} == {(255, 0, 0)}


def test_a_region_can_be_marked_in_red_instead(serve: Serve, open_page: Open, scene: Path) -> None:
    model = FakeModel()
    user = open_page(serve(model))
    user.drop(scene)
    user.ask_and_wait("What is it?")
    drag(user, ".question .frame", (0.75, 0.25), (0.95, 0.75))
    user.page.locator(".question").get_by_role("button", name="Mark it in red").click()
    user.wait_for_pictures(1)
    assert user.page.input_value("#question") == "What is in the red rectangle?"
    user.page.locator("#send").click()
    user.wait_for_answer(2)
    marked = last_picture(model)
    assert marked.size == (200, 100)
    red, green, blue = marked.getpixel((150, 50))
    assert red > 200 and green < 80 and blue < 80  # the left side of the rectangle
    assert marked.getpixel((170, 50)) == (255, 255, 255)


def test_a_drag_does_not_open_the_picture_but_a_click_does(user: User) -> None:
    drag(user, ".answer .frame", (0.1, 0.3), (0.3, 0.6))
    assert not user.page.locator("#viewer").is_visible()
    user.page.locator(".answer .frame").click(position={"x": 5, "y": 5})
    assert user.page.locator("#viewer").is_visible()
    user.page.keyboard.press("Escape")
    assert not user.page.locator("#viewer").is_visible()


def test_a_region_is_selected_with_the_keyboard_alone(user: User) -> None:
    user.page.locator(".answer .frame").focus()
    user.page.keyboard.press("Enter")
    user.page.locator("#viewer-select").press("Enter")
    outline = user.page.locator("#stage .region")
    assert outline.get_attribute("aria-label") == "Region from 50, 25 to 150, 75"
    user.page.keyboard.press("ArrowRight")
    user.page.keyboard.press("Shift+ArrowDown")
    assert outline.get_attribute("aria-label") == "Region from 54, 25 to 154, 77"
    assert user.page.locator("#viewer-how").inner_text() == "Region from 54, 25 to 154, 77"
    user.page.keyboard.press("Enter")
    assert not user.page.locator("#viewer").is_visible()
    user.wait_for_pictures(1)
