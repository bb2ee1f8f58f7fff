"""Languages, themes, a phone, a screen reader's view, and the status page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fakes import FakeModel
from page.models import grounded
from page.serving import Open, Serve
from page.user import User

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
IS_DARK = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(value => value < 60)"


@pytest.mark.parametrize(("locale", "heading"), [("en-US", "Ask about a picture"), ("zh-CN", "问一张图片")])
def test_it_speaks_the_browsers_language(serve: Serve, open_page: Open, locale: str, heading: str) -> None:
    user = open_page(serve(FakeModel()), locale=locale)
    assert user.page.locator("h2").nth(1).inner_text() == heading
    assert user.page.evaluate("document.documentElement.lang") == {"en-US": "en", "zh-CN": "zh-CN"}[locale]


def test_the_language_can_be_changed_and_stays(serve: Serve, open_page: Open, scene: Path) -> None:
    user = open_page(serve(FakeModel(grounded())))
    user.drop(scene)
    user.ask_and_wait("Where?")
    user.page.locator("#language").click()
    user.button("复制").wait_for()  # also on answers that were there
    assert user.said() == "There is the red box, the corners."
    user.page.reload()
    assert user.page.title() == "vl2 – 看图问答"
    user.page.locator("#language").click()
    assert user.page.title() == "vl2 – ask about a picture"


def test_in_chinese_everything_is_chinese(serve: Serve, open_page: Open, scene: Path) -> None:
    user = open_page(serve(FakeModel()), locale="zh-CN")
    user.drop(scene)
    user.page.keyboard.press("Tab")
    user.button("定位").click()
    user.page.locator("#send").click()
    user.wait_for_answer()
    texts = user.page.evaluate(
        "[...document.querySelectorAll('button, label, h2')].map(node => node.innerText || node.ariaLabel)"
    )
    english = {text for text in texts if text and text.isascii()}
    assert english <= {"English", "JSON", "PNG", "Top p", "Top k"}


def test_light_and_dark_follow_the_system_until_one_is_chosen(serve: Serve, open_page: Open) -> None:
    url = serve(FakeModel())
    assert open_page(url).page.evaluate(IS_DARK) is False
    user = open_page(url, color_scheme="dark")
    assert user.page.evaluate(IS_DARK) is True
    user.page.locator("#theme").click()
    assert user.page.evaluate(IS_DARK) is False
    user.page.reload()
    assert user.page.evaluate(IS_DARK) is False


# ---- a phone --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/status"])
def test_nothing_is_wider_than_a_phone(serve: Serve, open_page: Open, path: str) -> None:
    user = open_page(serve(FakeModel()), path=path, **PHONE)
    assert user.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_whole_conversation_on_a_phone(serve: Serve, open_page: Open, scene: Path) -> None:
    user = open_page(serve(FakeModel(grounded())), **PHONE)
    user.drop(scene, scene)
    user.ask_and_wait("Where?")
    assert user.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for name in ("settings", "history-open", "restart", "theme", "add", "question"):
        box = user.page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["height"] >= 36, name
    user.page.locator(".answer .frame").tap(position={"x": 20, "y": 20})
    user.page.locator("#viewer-select").tap()
    user.page.locator("#stage").get_by_role("button", name="Ask about this part").tap()
    user.wait_for_pictures(1)


# ---- for who hears it, or has no mouse ------------------------------------------------------------------------------


def serious(user: User) -> list[str]:
    """What axe-core finds that is serious or critical; by WCAG 2.2 AA and best practice."""
    axe = pytest.importorskip("axe_playwright_python.base", reason="needs axe: make test-page")
    # By the debugger's channel: the page's own policy would let no such script in.
    user.page.evaluate(axe.AXE_FILE_PATH.read_text(encoding="utf-8"))
    found: Any = user.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{rule['id']}: {node['html'][:120]} {node.get('failureSummary', '')}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(serve: Serve, open_page: Open, scene: Path, scheme: str) -> None:
    user = open_page(serve(FakeModel(grounded())), color_scheme=scheme)
    assert serious(user) == []
    user.drop(scene, scene)
    user.button("JSON").click()
    assert serious(user) == []
    user.page.locator("#schema-remove").click()
    user.ask_and_wait("<|ref|>the box<|/ref|>.")
    user.page.locator("#history-open").click()
    user.page.locator(".entry").wait_for()
    assert serious(user) == []
    user.page.locator(".answer .object").first.hover()
    assert serious(user) == []
    for opener in ("#settings", "#from-url", "#camera"):
        user.page.locator(opener).click()
        user.page.locator("dialog[open]").wait_for()
        assert serious(user) == [], opener
        user.page.keyboard.press("Escape")
    user.button("Request").click()
    assert serious(user) == []
    user.page.keyboard.press("Escape")
    user.page.locator(".answer .frame").click(position={"x": 5, "y": 5})
    user.page.locator("#viewer-select").click()
    assert serious(user) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_where_something_failed(serve: Serve, open_page: Open, scheme: str) -> None:
    user = open_page(serve(FakeModel(), api_key=["k"]), color_scheme=scheme)
    user.page.locator("#key-dialog").wait_for()
    assert serious(user) == []
    user.page.locator("#key-close").click()
    user.ask("What is it?")
    user.page.locator("#key-close").click()
    user.page.locator(".failed .error").wait_for()
    assert serious(user) == []
    user.take_complaints()


def test_a_question_can_be_asked_with_the_keyboard_alone(serve: Serve, open_page: Open) -> None:
    user = open_page(serve(FakeModel()))
    user.page.keyboard.press("/")
    user.page.keyboard.type("What is it?")
    user.page.keyboard.press("Shift+Enter")
    user.page.keyboard.type("Tell me.")
    assert user.page.input_value("#question") == "What is it?\nTell me."
    user.page.keyboard.press("Enter")
    user.wait_for_answer()


def test_the_answer_is_said_to_a_screen_reader_once_it_is_complete(serve: Serve, open_page: Open, scene: Path) -> None:
    user = open_page(serve(FakeModel(grounded())))
    user.drop(scene)
    user.ask_and_wait("Where?")
    assert user.page.locator("#spoken").inner_text() == "Answered. There is the red box, the corners."


# ---- the status page ------------------------------------------------------------------------------------------------


def test_status_shows_replicas_queue_pages_latency_and_versions(serve: Serve, open_page: Open) -> None:
    url = serve(FakeModel(name="fake"))
    asking = open_page(url)
    for _ in range(3):
        asking.ask_and_wait("What is it?")
        asking.page.locator("#restart").click()
    user = open_page(url, path="/status")
    user.page.get_by_text("last 3 answers").first.wait_for()
    text = user.page.locator("main").inner_text()
    for told in ("fake", "1 / 1", "0 / 256", "vl2-d-test", "torch", "python"):
        assert told in text
    assert user.page.locator(".spark polyline").count() == 2
    assert serious(user) == []


def test_status_asks_for_a_key_too(serve: Serve, open_page: Open) -> None:
    user = open_page(serve(FakeModel(), api_key=["right"]), path="/status")
    user.page.fill("#key", "right")
    user.page.keyboard.press("Enter")
    user.page.get_by_text("1 / 1").wait_for()
    user.take_complaints()
