"""What someone does with the page, in their words; Playwright underneath."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

MIME = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".pdf": "application/pdf",
    ".tif": "image/tiff",
}

PIXEL = """(canvas, [x, y]) => {
  const scale = canvas.width / canvas.clientWidth;
  return [...canvas.getContext("2d").getImageData(Math.round(x * scale), Math.round(y * scale), 1, 1).data];
}"""

IS_DRAWN = """canvas => canvas && canvas.width > 0
  && canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0)"""


class User:
    """`complaints` are the console's errors and warnings; a test that provokes some takes them out."""

    def __init__(self, context: Any, url: str) -> None:
        self.context = context
        self.page = context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"a dialog: {dialog.message}"))
        self.page.goto(url)
        self.until("document.title !== 'vl2'")

    def _hear(self, message: Any) -> None:
        is_ours = "willReadFrequently" in message.text  # the tests read pixels, the page does not
        if message.type in ("error", "warning") and not is_ours:
            self.complaints.append(message.text)

    def until(self, expression: str) -> None:
        """It holds in the page. As a function: the page's policy forbids to evaluate strings."""
        self.page.wait_for_function(f"() => ({expression})")

    def stop_the_clock(self) -> None:
        """The page's timers run when `page.clock.run_for` lets them, however long its user takes."""
        self.page.clock.install()
        self.page.clock.pause_at(time.time() + 3600)

    # ---- asking ----

    def drop(self, *files: Path, names: list[str] | None = None) -> None:
        """Let files go over the page, as from a file manager."""
        items = [
            (name, MIME[file.suffix], base64.b64encode(file.read_bytes()).decode())
            for file, name in zip(files, names or [file.name for file in files], strict=True)
        ]
        before = self.page.locator("#tray li").count()
        transfer = self.page.evaluate_handle(
            """items => {
              const transfer = new DataTransfer();
              for (const [name, type, data] of items) {
                const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
                transfer.items.add(new File([bytes], name, {type}));
              }
              return transfer;
            }""",
            items,
        )
        self.page.dispatch_event("#scroll", "dragover", {"dataTransfer": transfer})
        self.page.dispatch_event("#scroll", "drop", {"dataTransfer": transfer})
        self.page.wait_for_function(
            "n => document.querySelectorAll('#tray li:not(.reading)').length >= n", arg=before + len(files)
        )

    def ask(self, text: str) -> None:
        self.page.fill("#question", text)
        self.page.keyboard.press("Enter")

    def ask_and_wait(self, text: str) -> None:
        number = self.page.locator(".answer").count()
        self.ask(text)
        self.wait_for_answer(number + 1)

    def wait_for_answer(self, number: int = 1) -> None:
        """Until so many answers are complete."""
        self.page.wait_for_function(
            "n => document.querySelectorAll('.answer .actions').length >= n && !document.querySelector('.running')",
            arg=number,
        )

    def wait_for_pictures(self, number: int) -> None:
        """Until so many are in the question that is being written."""
        self.page.wait_for_function("n => document.querySelectorAll('#tray li:not(.reading)').length === n", arg=number)

    def wait_for_boxes(self) -> None:
        """Until something is drawn over the last answer's picture."""
        self.until(f"({IS_DRAWN})([...document.querySelectorAll('.answer canvas')].at(-1))")

    # ---- looking ----

    def said(self, idx: int = -1) -> str:
        """The text of an answer."""
        return self.page.locator(".answer .said").nth(idx).inner_text().strip()

    def answer_pixel(self, x: float, y: float) -> list[int]:
        """RGBA on the canvas over the last answer's picture; x and y from 0 to 1 over the picture."""
        canvas = self.page.locator(".answer canvas").last
        size = canvas.bounding_box()
        return canvas.evaluate(PIXEL, [x * size["width"], y * size["height"]])

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True).last

    def take_complaints(self) -> list[str]:
        """Those that were provoked."""
        taken, self.complaints[:] = list(self.complaints), []
        return taken

    def download(self, name: str) -> tuple[str, bytes]:
        """Press a button; the name and the content of the file that it saves."""
        with self.page.expect_download() as waiting:
            self.button(name).click()
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()

    def downloaded_json(self, name: str) -> Any:
        return json.loads(self.download(name)[1])
