"""A browser (Debian's Chromium), and servers with a scripted model for it to look at.

Skipped where Chromium or Playwright is missing; `make test-page` gets both.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeModel
from page.serving import Open, Serve, running
from page.user import User
from vl2.server.fetch import PictureFetcher

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",  # tests run as root in containers
    "--use-fake-device-for-media-stream",  # a camera that shows a test picture
    "--use-fake-ui-for-media-stream",
    "--force-color-profile=srgb",
    "--disable-lcd-text",
]


@pytest.fixture(scope="module")  # not longer: its event loop must be gone when asyncio tests run
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-page")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: make test-page")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """`open_page(url, …)` → someone who looks at it; afterwards nothing may stand in its console."""
    users: list[User] = []

    def make(url: str, *, path: str = "/", **options: Any) -> User:
        settings = {"viewport": {"width": 1180, "height": 820}, "locale": "en-GB", "reduced_motion": "reduce"} | options
        context = browser.new_context(**settings)
        context.set_default_timeout(60_000)  # of a machine that others use, too
        user = User(context, url + path)
        users.append(user)
        return user

    yield make
    for user in users:
        complaints = list(user.complaints)
        user.context.close()
        assert complaints == []


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(model, …)` → the address of a real server on loopback, with the options of ServerConfig."""
    with contextlib.ExitStack() as stack:

        def make(model: FakeModel, *, port: int = 0, fetcher: PictureFetcher | None = None, **config: Any) -> str:
            return stack.enter_context(running(model, port=port, fetcher=fetcher, **config))

        yield make


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """200 × 100 pixels: white, with a red rectangle from 40, 20 to 120, 70."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (200, 100), "white")
    ImageDraw.Draw(image).rectangle((40, 20, 119, 69), fill="red")
    file = tmp_path / "scene.png"
    image.save(file)
    return file
