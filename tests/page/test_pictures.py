"""Pictures by every way there is, several of them, and in the order that was chosen."""

from __future__ import annotations

import io
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Network
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakes import FakeModel
from page.serving import Open, Serve
from page.user import User
from vl2.core.errors import TooLarge
from vl2.server.addresses import FetchRules
from vl2.server.fetch import PictureFetcher


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    files = [tmp_path / "red.png", tmp_path / "blue.png"]
    for file in files:
        Image.new("RGB", (60, 40), file.stem).save(file)
    return files


def colours_asked(model: FakeModel) -> list[tuple[int, ...]]:
    images = model.asked[-1][0][-1].images
    return [Image.open(io.BytesIO(image)).convert("RGB").getpixel((15, 15)) for image in images]


RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_two_pictures_go_in_the_order_they_were_given(serve: Serve, open_page: Open, two: list[Path]) -> None:
    model = FakeModel()
    user = open_page(serve(model))
    user.drop(*two)
    user.ask_and_wait("Compare.")
    assert colours_asked(model) == [RED, BLUE]
    assert user.page.locator(".question img").count() == 2


def test_their_order_can_be_changed_by_keyboard(serve: Serve, open_page: Open, two: list[Path]) -> None:
    model = FakeModel()
    user = open_page(serve(model))
    user.drop(*two)
    user.button("Move blue.png forward").press("Enter")
    assert user.page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Look at blue.png")
    user.ask_and_wait("Compare.")
    assert colours_asked(model) == [BLUE, RED]


def test_their_order_can_be_changed_by_dragging(serve: Serve, open_page: Open, two: list[Path]) -> None:
    model = FakeModel()
    user = open_page(serve(model))
    user.drop(*two)
    items = user.page.locator("#tray li")
    items.nth(1).drag_to(items.nth(0))
    user.until("document.querySelector('#tray img').alt === 'blue.png'")
    user.ask_and_wait("Compare.")
    assert colours_asked(model) == [BLUE, RED]


def test_one_of_them_can_be_removed(serve: Serve, open_page: Open, two: list[Path]) -> None:
    model = FakeModel()
    user = open_page(serve(model))
    user.drop(*two)
    user.button("Remove red.png").click()
    user.ask_and_wait("What is it?")
    assert colours_asked(model) == [BLUE]


def test_comparing_asks_for_a_second_picture(serve: Serve, open_page: Open, two: list[Path]) -> None:
    user = open_page(serve(FakeModel()))
    user.drop(two[0])
    user.button("Compare").click()
    assert "at least two pictures" in user.page.locator("#notice").inner_text()
    user.drop(two[1])
    assert not user.page.locator("#notice").is_visible()


def test_a_picture_is_chosen_from_a_file(serve: Serve, open_page: Open, scene: Path) -> None:
    user = open_page(serve(FakeModel()))
    with user.page.expect_file_chooser() as waiting:
        user.page.locator("#pick").click()
    waiting.value.set_files(scene)
    user.wait_for_pictures(1)


def test_a_picture_is_pasted(serve: Serve, open_page: Open) -> None:
    url = serve(FakeModel())
    user = open_page(url)
    user.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
    user.page.evaluate(
        """async () => {
          const canvas = Object.assign(document.createElement("canvas"), {width: 30, height: 20});
          canvas.getContext("2d").fillRect(0, 0, 30, 20);
          const blob = await new Promise(resolve => canvas.toBlob(resolve));
          await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
        }"""
    )
    user.page.locator("#question").press("Control+V")
    user.wait_for_pictures(1)


def test_a_picture_is_taken_with_the_camera(serve: Serve, open_page: Open) -> None:
    user = open_page(serve(FakeModel()))
    user.page.locator("#camera").click()
    user.until("document.getElementById('video').videoWidth > 0")
    user.page.locator("#snap").click()
    user.wait_for_pictures(1)
    assert user.page.evaluate("document.getElementById('video').srcObject.active") is False  # its light is off


@pytest.fixture
def elsewhere(scene: Path) -> str:
    """Another server, which has the picture."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(scene.parent))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def add_url(user: User, url: str) -> None:
    user.page.locator("#from-url").click()
    user.page.fill("#url", url)
    user.page.keyboard.press("Enter")


def test_a_picture_by_url_is_fetched_by_the_server(serve: Serve, open_page: Open, elsewhere: str) -> None:
    model = FakeModel()
    fetcher = PictureFetcher(rules=FetchRules(networks=(IPv4Network("127.0.0.0/8"),)))
    user = open_page(serve(model, fetcher=fetcher))
    add_url(user, f"{elsewhere}/scene.png?size=large")
    user.wait_for_pictures(1)
    assert user.page.locator("#tray img").get_attribute("alt") == "scene.png"
    user.ask_and_wait("What is it?")
    assert Image.open(io.BytesIO(model.asked[0][0][0].images[0])).size == (200, 100)


def test_a_picture_is_dropped_from_another_web_page(serve: Serve, open_page: Open, elsewhere: str) -> None:
    fetcher = PictureFetcher(rules=FetchRules(networks=(IPv4Network("127.0.0.0/8"),)))
    user = open_page(serve(FakeModel(), fetcher=fetcher))
    transfer = user.page.evaluate_handle(
        "url => { const t = new DataTransfer(); t.setData('text/uri-list', url); return t; }", f"{elsewhere}/scene.png"
    )
    user.page.dispatch_event("#scroll", "drop", {"dataTransfer": transfer})
    user.wait_for_pictures(1)


def test_a_url_that_may_not_be_fetched_is_refused_with_the_servers_reason(serve: Serve, open_page: Open) -> None:
    user = open_page(serve(FakeModel()))
    add_url(user, "http://127.0.0.1:9/secret.png")
    user.page.locator("#url-error").wait_for()
    assert "127.0.0.1" in user.page.locator("#url-error").inner_text()
    assert user.page.locator("#url-dialog").is_visible()
    user.take_complaints()


def test_pages_of_a_pdf_become_pictures(serve: Serve, open_page: Open, tmp_path: Path) -> None:
    file = tmp_path / "paper.pdf"
    file.write_bytes(b"%PDF-1.7 of the fake model, which has two pages")
    user = open_page(serve(FakeModel()))
    user.drop(file)
    user.wait_for_pictures(2)
    names = [image.get_attribute("alt") for image in user.page.locator("#tray img").all()]
    assert names == ["paper.pdf – 1", "paper.pdf – 2"]


def test_sixteen_bits_of_grey_are_shown_as_the_server_sees_them(
    serve: Serve, open_page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The browser itself would show 12 bits as nearly black."""
    file = tmp_path / "xray.png"
    Image.fromarray(np.full((20, 30), 4095, np.uint16)).save(file)
    model = FakeModel()

    async def open_picture(source: object) -> Image.Image:
        return Image.new("RGB", (30, 20), "white")

    monkeypatch.setattr(model, "open_picture", open_picture)
    user = open_page(serve(model))
    user.drop(file)
    user.ask_and_wait("What is it?")
    assert colours_asked(model) == [(255, 255, 255)]


def test_of_a_pdf_with_too_many_pages_some_are_named(
    serve: Serve, open_page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "book.pdf"
    file.write_bytes(b"%PDF-1.7 of the fake model")
    model = FakeModel()
    take = model.pdf_pages

    async def pdf_pages(data: bytes, pages: str | None = None) -> list[Image.Image]:
        if pages is None:
            raise TooLarge("the PDF gives 300 pages; at most 16 are taken")
        return await take(data, pages)

    monkeypatch.setattr(model, "pdf_pages", pdf_pages)
    user = open_page(serve(model))
    user.page.set_input_files("#files", file)
    user.page.get_by_text("300 pages").wait_for()
    user.page.fill("#pages", "2,4,6")
    user.page.keyboard.press("Enter")
    user.wait_for_pictures(3)
    user.page.set_input_files("#files", file)
    user.page.locator("#pages-dialog").get_by_role("button", name="Cancel").click()
    user.page.locator("#notice", has_text="300 pages").wait_for()
    user.wait_for_pictures(3)
    user.take_complaints()


def test_a_large_photograph_is_made_smaller_before_it_is_sent(serve: Serve, open_page: Open, tmp_path: Path) -> None:
    file = tmp_path / "large.jpg"
    Image.new("RGB", (4800, 1200), "blue").save(file)
    model = FakeModel()
    user = open_page(serve(model))
    user.drop(file)
    user.ask_and_wait("What is it?")
    assert Image.open(io.BytesIO(model.asked[0][0][0].images[0])).size == (2400, 600)


def test_the_sample_is_a_picture_like_others(serve: Serve, open_page: Open) -> None:
    user = open_page(serve(FakeModel()))
    user.page.locator("#sample").click()
    user.wait_for_pictures(1)
    assert user.page.locator("#preview img").is_visible()
